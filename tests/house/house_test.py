"""The house keeps its own rules: lint, layers, packaging, quick help, no TensorFlow."""

import ast
import pathlib
import re
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted((ROOT / "dlm_jax").rglob("*.py"))


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_ruff_finds_nothing():
    for arguments in (["check", "."], ["format", "--check", "."]):
        done = run(sys.executable, "-m", "ruff", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_imports_follow_the_layers():
    done = run(str(pathlib.Path(sys.executable).parent / "lint-imports"), "--no-logo")
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_setup_cfg_lists_every_package():
    import configparser

    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    assert listed == there | {"dlm_jax.configs", "dlm_jax.launch"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sample", "--help"]], ids=" ".join)
def test_help_imports_no_jax_and_is_quick(arguments):
    code = (
        "import sys; from dlm_jax.cli.main import main; "
        f"code = main({arguments!r}); print('jax' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    start = time.monotonic()
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0 and done.stderr.strip() == "False"
    assert "example" in done.stdout or "VERB" in done.stdout
    assert time.monotonic() - start < 10  # a hang, not a benchmark: 0.2 s on a quiet machine


def test_importing_the_package_imports_no_jax_and_no_tensorflow():
    done = run(sys.executable, "-c", "import sys, dlm_jax; print('jax' in sys.modules, 'tensorflow' in sys.modules)")
    assert done.stdout.strip() == "False False"


def test_every_public_function_and_class_has_a_docstring():
    missing = []
    for path in SOURCES:
        if path.parent.name == "cli":
            continue  # verbs: run and define_flags, documented by their help
        for node in ast.parse(path.read_text()).body:
            is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if is_public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not missing


def test_library_code_holds_no_assert_and_no_vague_file_name():
    for path in SOURCES:
        assert path.stem not in ("utils", "common", "helpers", "misc", "core"), path
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not asserts, f"{path}: {asserts}"


def test_readme_names_only_files_and_verbs_that_are_there():
    text = (ROOT / "README.md").read_text()
    from dlm_jax.cli.main import VERBS

    for verb in re.findall(r"\bdlm ([a-z]+)\b(?! model)", text):
        assert verb in VERBS, verb
    for name in re.findall(r"`((?:dlm_jax|configs|tests|launch)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name


RISKY = r"\b(pickle|marshal|shelve)\b|(?<![\w.])(eval|exec)\(|shell=True|os\.system|yaml\.load|allow_pickle=True"


def test_nothing_that_is_loaded_is_executed():
    """Config files are programs and are run as such; checkpoints, corpora, plans and tokenizers never are."""
    sources = [*SOURCES, *sorted((ROOT / "launch").glob("*.py"))]
    found = {str(path): re.findall(RISKY, path.read_text()) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}
    assert re.search(RISKY, "pickle.load(file)") and re.search(RISKY, "np.load(path, allow_pickle=True)")
    assert all(
        "allow_pickle=False" in line for path in sources for line in path.read_text().splitlines() if "np.load(" in line
    )
