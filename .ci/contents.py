"""Check what is in a wheel or source archive: everything that a user needs, nothing that only we do."""

import ast
import re
import sys
import tarfile
import zipfile
from pathlib import Path

archive = Path(sys.argv[1])
if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        metadata = next(file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
else:
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        about = next(name for name in tar.getnames() if name.count("/") == 1 and name.endswith("PKG-INFO"))
        metadata = tar.extractfile(about).read().decode()

table = next(
    node.value
    for node in ast.parse(Path("setup.py").read_text()).body
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KERNELS"
)
families = set(ast.literal_eval(table))
native = {"nova/_native/" + family for family in families}
faults = [f"lacks {name}" for name in ("nova/py.typed", "nova/__init__.py", "nova/types.py") if name not in names]
for stem in native:
    owner = ("_build.py",) if Path(stem + "_build.py").exists() else (".pyx", ".pxd")
    faults += [f"lacks {stem}{end}" for end in (".pyi", *owner) if stem + end not in names]
faults += [f"lacks {part}" for part in Path("nova/_native").glob("*.pxi") if str(part) not in names]
faults += [f"has {name}" for name in names if re.search(r"__pycache__|\.venv|^build/|/_native/[^/]*\.(c|html)$", name)]
if archive.suffix == ".whl":
    faults += [f"lacks {stem}.*.so" for stem in native if not any(re.match(stem + r"\.[^/]*so$", n) for n in names)]
    faults += [f"has {name}" for name in names if not re.match(r"nova/|novacron[-.]", name)]
else:
    faults += [f"lacks {name}" for name in ("setup.py", "LICENSE", "README.md", "pyproject.toml") if name not in names]
    faults += [f"lacks {file}" for file in map(str, Path("csrc").glob("*.[ch]")) if file not in names]
    faults += [f"has {name}" for name in names if name.endswith(".so")]
if "License-Expression: Apache-2.0" not in metadata:
    faults.append("does not name its licence")
if faults:
    sys.exit(f"{archive.name}:\n  " + "\n  ".join(sorted(faults)))
print(f"{archive.name}: {len(names)} files, {archive.stat().st_size / 1024:.0f} KiB, contents as they should be")
