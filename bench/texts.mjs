// The peers of bench/texts.py that JavaScript has. usage: node texts.mjs FOLDER PEER TASK INPUT ROUNDS
//
// FOLDER holds node_modules. Prints JSON: the CPU seconds of this process in each round, and what the task came to.
// They count the compiler's and the collector's threads, too, which the least of the rounds has least of.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, peer, task, input, rounds] = process.argv.slice(2);
const load = createRequire(`${folder}/`);
const given = JSON.parse(readFileSync(input, "utf8"));

class DiamondTypes {
  static library = peer === "diamond-types" && load("diamond-types-node");

  constructor(actor, doc) {
    this.doc = doc ?? new DiamondTypes.library.Doc(actor);
  }
  edit(patches) {
    for (const [pos, n, inserted] of patches) {
      if (n) this.doc.del(pos, n);
      if (inserted) this.doc.ins(pos, inserted);
    }
  }
  text() { return this.doc.get(); }
  toBytes() { return this.doc.toBytes(); }
  static fromBytes(data, actor) { return new DiamondTypes(actor, DiamondTypes.library.Doc.fromBytes(data, actor)); }
  mark() { return this.doc.getLocalVersion(); }
  since(mark) { return this.doc.getPatchSince(mark); }
  apply(data) { this.doc.mergeBytes(data); }
  free() { this.doc.free(); }
}

// Below the proxies of automerge's documents, which take ten times longer; all edits of a call are one change.
class Automerge {
  static library = peer === "automerge" && load("@automerge/automerge-wasm");

  constructor(actor, doc) {
    this.doc = doc ?? Automerge.library.create({ actor: Buffer.from(actor).toString("hex") });
    this.shared = doc ? doc.getWithType("/", "t")[1] : this.doc.putObject("/", "t", "");
  }
  edit(patches) {
    for (const [pos, n, inserted] of patches) this.doc.splice(this.shared, pos, n, inserted);
    this.doc.commit();
  }
  text() { return this.doc.text(this.shared); }
  toBytes() { return this.doc.save(); }
  static fromBytes(data, actor) {
    return new Automerge(actor, Automerge.library.load(data, { actor: Buffer.from(actor).toString("hex") }));
  }
  mark() { return this.doc.getHeads(); }
  since(mark) { return this.doc.getChanges(mark); }
  apply(data) { this.doc.applyChanges(data); }
  free() { this.doc.free(); }
}

const Text = { "diamond-types": DiamondTypes, automerge: Automerge }[peer];

/** One round: `prepare` makes what `work` uses up; only `work` is timed. */
function timed(prepare, work) {
  const made = prepare();
  const before = process.cpuUsage();
  const out = work(made);
  const { user, system } = process.cpuUsage(before);
  return [(user + system) / 1e6, out];
}

const tasks = {
  typed() {
    const [seconds, [doc, text]] = timed(() => 0, () => {
      const doc = new Text("a");
      doc.edit(given.patches);
      return [doc, doc.text()];
    });
    doc.free();
    return { seconds, text };
  },
  loaded() {
    const paper = new Text("a");
    paper.edit(given.patches);
    const data = paper.toBytes();
    paper.free();
    return () => {
      const [seconds, [doc, text]] = timed(() => 0, () => {
        const doc = Text.fromBytes(data, "b");
        return [doc, doc.text()];
      });
      doc.free();
      return { seconds, text, bytes: data.length };
    };
  },
  met() {
    const base = new Text("base");
    base.edit(given.base);
    const data = base.toBytes();
    const sides = ["left", "right"].map((actor) => {
      const doc = Text.fromBytes(data, actor);
      const mark = doc.mark();
      doc.edit(given[actor]);
      return { actor, data: doc.toBytes(), news: doc.since(mark) };
    });
    return () => {
      const [seconds, docs] = timed(
        () => sides.map(({ actor, data }) => Text.fromBytes(data, actor)),
        (docs) => (docs[0].apply(sides[1].news), docs[1].apply(sides[0].news), docs),
      );
      const [text, other] = docs.map((doc) => doc.text());
      docs.forEach((doc) => doc.free());
      if (text !== other) throw new Error("the two sides do not read the same");
      return { seconds, text };
    };
  },
};

const once = task === "typed" ? tasks.typed : tasks[task]();
const all = Array.from({ length: Number(rounds) }, once);
console.log(JSON.stringify({ ...all.at(-1), seconds: all.map((one) => one.seconds) }));
