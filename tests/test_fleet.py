"""The fleet: traces in, bad traces refused, a generator with the shapes it claims."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from nova.cli.demo import open_trace
from nova.errors import UsageError
from nova.fleet import Fleet, draw_cores, draw_lifetime_ms, draw_utilisation, read_trace, vm_id

DATA = Path(os.environ.get("NOVA_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")) / "vm-traces"
REGIONS = ("us-east", "eu-west", "ap-southeast")
SAMPLES = "id,t,duration,cpu_count,cpu_mhz\n7,100,300,2,10.5\n7,400,300,2,0\n7,700,300,4,99\n9,100,300,1,5\n"

traces = pytest.mark.parametrize(
    ("file", "form", "series"),
    [
        ("bitbrains_cpu.csv.gz", "bitbrains", 8),
        ("surf_jobs.csv.gz", "surf", 1024),
        ("shell_workflows.csv.gz", "shell", None),
        ("azure_llm_requests_code.csv.gz", "azure-llm", 64),
    ],
)


@traces
def test_every_public_trace_gives_any_number_of_vms_and_events(file, form, series):
    if not (DATA / file).exists():
        pytest.skip(f"no {file}; set NOVA_TEST_DATA to the directory that holds vm-traces/")
    trace = open_trace(DATA / file)
    assert trace.format == form
    assert series is None or len(trace.series) == series
    fleet = Fleet(3_000, 30_000, REGIONS, random.Random(1), trace)
    events = fleet.changes()
    assert len(events) == 30_000
    assert {event.vm for event in events} == set(range(3_000))
    assert [event.time_ms for event in events] == sorted(event.time_ms for event in events)
    assert events[0].time_ms >= 0
    assert all(event.changes for event in events)
    assert events == Fleet(3_000, 30_000, REGIONS, random.Random(1), trace).changes()


def test_samples_become_starts_stops_resizes_and_utilisation():
    trace = read_trace(SAMPLES.splitlines(keepends=True), "x.csv")
    assert trace.records == 4
    assert [step.changes for step in trace.series[0]] == [
        {"metrics": {"cpu_mhz": 10.5}, "cpu": 2, "power_state": "running"},
        {"metrics": {"cpu_mhz": 0.0}, "power_state": "stopped"},
        {"metrics": {"cpu_mhz": 99.0}, "cpu": 4, "power_state": "running"},
    ]


def test_jobs_of_one_queue_wait_for_each_other():
    rows = [f"{job},0,100,16\n" for job in range(1025)]
    trace = read_trace(["id,submit_s,run_s,cpu_count\n", *rows], "jobs.csv")
    assert [step.time_ms for step in trace.series[0]] == [0, 100_000, 100_000, 200_000]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("a,b,c\n1,2,3\n", "line 1: header 'a,b,c' is of no known trace"),
        ("id,t,duration,cpu_count,cpu_mhz\n", "holds no records"),
        (SAMPLES + "9,400,3", "line 6: the last line has no end"),
        (SAMPLES + "9,400,300,1,5", "line 6: the last line has no end"),
        (SAMPLES + "9,400\n", "line 6: 2 fields, 5 expected"),
        (SAMPLES + "9,400,300,1,much\n", "line 6: cpu_mhz is 'much'"),
        (SAMPLES + "9,-4,300,1,1\n", "line 6: t is '-4'"),
        (SAMPLES + "9,4,300,1,nan\n", "line 6: cpu_mhz is 'nan'"),
        (SAMPLES + "9,4\0,300,1,1\n", "line 6: a zero byte"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: TIMESTAMP is 'yesterday'"),
    ],
)
def test_a_bad_trace_is_refused_with_file_and_line(text, says):
    with pytest.raises(UsageError) as refused:
        read_trace(text.splitlines(keepends=True), "bad.csv")
    assert str(refused.value).startswith("bad.csv")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("keep", [5, 40, -12, -1])
def test_a_cut_compressed_trace_is_refused_with_file_and_line(tmp_path, keep):
    whole = gzip.compress(("id,t,duration,cpu_count,cpu_mhz\n" + "7,100,300,2,10.5\n" * 5000).encode())
    file = tmp_path / "cut.csv.gz"
    file.write_bytes(whole[:keep])
    with pytest.raises(UsageError, match=r"cut\.csv\.gz, line \d+: .*cut or damaged"):
        open_trace(file)


def test_a_file_that_is_no_trace_is_refused_in_one_line(tmp_path):
    noise = tmp_path / "noise.csv.gz"
    noise.write_bytes(b"this is not compressed")
    with pytest.raises(UsageError, match="noise"):
        open_trace(noise)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="binary"):
        open_trace(binary)
    with pytest.raises(UsageError, match="missing"):
        open_trace(tmp_path / "missing.csv")


def test_the_generator_gives_the_same_fleet_for_the_same_seed_and_another_for_another():
    def made(seed):
        fleet = Fleet(50, 500, REGIONS, random.Random(seed))
        return list(fleet.initial()), fleet.changes()

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_the_generator_draws_from_the_distributions_it_names():
    chance = random.Random(5)
    cores = [draw_cores(chance) for _ in range(20_000)]
    assert {1, 2, 4, 8, 16, 32} == set(cores)
    assert 0.79 < sum(count <= 2 for count in cores) / len(cores) < 0.83
    lives = sorted(draw_lifetime_ms(chance) for _ in range(20_000))
    assert 1_700_000 < lives[len(lives) // 2] < 1_900_000
    long = [life for life in lives if life > 86_400_000]
    assert 0.02 < len(long) / len(lives) < 0.06
    assert sum(long) > 0.5 * sum(lives)
    use = [draw_utilisation(chance) for _ in range(20_000)]
    assert 0.19 < sum(use) / len(use) < 0.21
    assert 0 <= min(use) <= max(use) <= 1


def test_states_and_changes_are_valid_vm_states():
    vm = pytest.importorskip("nova.conflict.vm")
    fleet = Fleet(200, 6_000, REGIONS, random.Random(6))
    leaves = {}
    for number, state in enumerate(fleet.initial()):
        assert state["id"] == vm_id(number)
        leaves[number] = vm.split(state)
    addresses = {
        leaf["ip"] for parts in leaves.values() for path, leaf in parts.items() if path.startswith("/networks/")
    }
    assert len(addresses) == 200
    for event in fleet.changes():
        puts, drops = vm.split_patch(event.changes, leaves[event.vm])
        leaves[event.vm] = {path: leaf for path, leaf in (leaves[event.vm] | puts).items() if path not in drops}
    assert all(vm.VMState.of(vm.join(parts)) for parts in leaves.values())
