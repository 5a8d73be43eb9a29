"""Generate the stubs of the contract into libs/protogen, or compare what is committed with what the protos say.

It answers for the files under libs/protogen/src and for the copy of google/rpc that lets buf resolve imports offline.
It knows nothing of what the messages mean, and it reaches no network: compiler, plugins and google's protos come from
locked wheels.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "libs" / "protogen" / "src"
GOOGLE_COPY = ROOT / ".cache" / "googleapis"
PLUGINS = Path(sys.executable).parent


def installed_google_protos() -> Path:
    """Return the folder of the installed googleapis-common-protos that holds google/rpc."""
    return Path(str(metadata.distribution("googleapis-common-protos").locate_file("")))


def copy_google_protos(source: Path, target: Path) -> None:
    """Copy the plain files of google/rpc, all that the contract imports beyond the compiler's own protos."""
    shutil.rmtree(target, ignore_errors=True)
    destination = target / "google" / "rpc"
    destination.mkdir(parents=True)
    for proto in sorted((source / "google" / "rpc").glob("*.proto")):
        shutil.copyfile(proto, destination / proto.name)


def compile_stubs(target: Path) -> None:
    """Write messages, services and types of every proto under byok/ to `target`.

    Raises:
        SystemExit: The compiler found an error, which it has printed.
    """
    messages = sorted(PROTOS.glob("byok/**/*.proto"))
    services = [path for path in messages if path.stem.endswith("_service")]
    run_compiler([f"--python_out={target}", f"--mypy_out=quiet:{target}"], messages)
    # Every caller and server of the suite runs on grpc.aio; typing both worlds would let a blocking call pass.
    run_compiler([f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_async:{target}"], services)
    write_packages(target)


def run_compiler(outputs: list[str], sources: list[Path]) -> None:
    """Run protoc in this process, with its own protos and google's on the path."""
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        f"--proto_path={installed_google_protos()}",
        f"--plugin=protoc-gen-mypy={PLUGINS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={PLUGINS / 'protoc-gen-mypy_grpc'}",
        *outputs,
        *map(str, sources),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protos: the compiler refused the contract; its words are above")


def write_packages(target: Path) -> None:
    """Make the generated folders typed packages, each saying what it is."""
    for folder in sorted(path for path in target.rglob("*") if path.is_dir()):
        name = ".".join(folder.relative_to(target).parts)
        docstring = f'"""Generated from the protos of {name}; never edited."""\n'
        (folder / "__init__.py").write_text(docstring, encoding="utf-8")
    for folder in target.iterdir():
        (folder / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Return the relative paths of files that differ or stand on one side only."""
    sides = [{path.relative_to(side) for path in side.rglob("*") if counts(path)} for side in (left, right)]
    changed = [name for name in sides[0] & sides[1] if not filecmp.cmp(left / name, right / name, shallow=False)]
    return sorted(str(name) for name in [*(sides[0] ^ sides[1]), *changed])


def counts(path: Path) -> bool:
    """Return whether a file is a stub, and not something that Python or an editor left there."""
    return path.is_file() and path.suffix in {".py", ".pyi", ".typed"}


def check() -> None:
    """Compare the committed stubs with freshly generated ones.

    Raises:
        SystemExit: They differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        compile_stubs(Path(scratch))
        drift = differences(STUBS, Path(scratch))
    if drift:
        names = "\n  ".join(drift)
        sys.exit(f"protos: committed stubs drifted from the protos; run `make protos` and commit:\n  {names}")


def write() -> None:
    """Replace the committed stubs, only when the compiler accepted every proto."""
    with tempfile.TemporaryDirectory(dir=STUBS.parent) as scratch:
        compile_stubs(Path(scratch))
        shutil.rmtree(STUBS / "byok", ignore_errors=True)
        shutil.move(Path(scratch) / "byok", STUBS / "byok")


def main() -> None:
    """Run the step named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["write", "check", "imports"], help="imports: only prepare what buf needs")
    step = parser.parse_args().step
    copy_google_protos(installed_google_protos(), GOOGLE_COPY)
    if step == "write":
        write()
    elif step == "check":
        check()


if __name__ == "__main__":
    main()
