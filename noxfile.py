"""What can be done with a checkout: `nox -s demo`, `nox -s tests`, and `nox -l` for the rest."""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "virtualenv"  # reads the machine's own pip configuration, which uv does not
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

SOURCES = ("fastapi_mesh", "tests", "examples", "benchmarks", "noxfile.py")
LONG, TOO_LONG = 300, 600
"""Lines: a file over the first is printed as a prompt to look for two ideas in it; over the second it fails."""

TEST_TOOLS = ("pytest>=9", "hypothesis>=6.150", "trustme>=1.2", "pytest-xdist>=3.8", "pytest-cov>=7", "wsproto")
SERVERS_TO_RUN_ON = ("hypercorn>=0.17", "zttp")
"""ASGI servers, and parsers of uvicorn, beside those that the extras bring: each passes on requests differently."""
EXTRAS = ".[cli,redis,kubernetes,dns,http2,ws,yaml,otel,transform]"
"""The package with all that its tests and its types need."""
LINT_TOOLS = ("ruff==0.17.6", "import-linter>=2.5,<3")
TYPE_TOOLS = ("mypy==2.4.1",)
DOCS_TOOLS = ("zensical==0.0.73", "pytest>=9")
STARLETTE_TOOLS = ("pytest>=8,<9", "trio", "httpx", "itsdangerous", "jinja2", "python-multipart", "pyyaml")
_FAIL_ANYHOW = (
    "test_requests.py::test_request_headers",
    "test_staticfiles.py::test_staticfiles_with_invalid_dir_permissions_returns_401",
    "test_websockets.py::test_websocket_headers",
)
HTTPBIN_TOOLS = ("pytest>=8,<10", "pytest-httpbin==2.1.0", "httpbin~=0.10.0", "pytest-mock", "trustme")
_TIMEOUTS = "tests/test_requests.py::TestTimeout"
BENCH_TOOLS = ("fastapi-proxy-lib==0.3.0", "httpx<1", "opentelemetry-sdk")


@nox.session
def demo(session: nox.Session) -> None:
    """Three services, two instances each, and a gateway, on this machine: nox -s demo [-- --once]."""
    session.install("-q", ".[cli]")
    # On Ctrl-C nox would kill it after half a second; it needs about one to end its processes in order.
    session.run("fastapi-mesh", "demo", *session.posargs, interrupt_timeout=10, terminate_timeout=10)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite: nox -s tests [-- PYTEST ARGUMENTS]; --cov doubles the time."""
    session.install("-q", "-e", EXTRAS, *TEST_TOOLS, *SERVERS_TO_RUN_ON)
    options = ["-m", "not soak", "--numprocesses", str(min(8, 2 * (os.cpu_count() or 1)))]
    options += ["--dist", "worksteal"]  # two for each core: half of the time a test waits for processes that it started
    options += ["--durations", "15"]
    session.run("pytest", *options, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """The tests that take longer than the suite allows, and what they print: figures and error budgets."""
    session.install("-q", "-e", EXTRAS, *TEST_TOOLS, *SERVERS_TO_RUN_ON)
    session.run("pytest", "-m", "soak", "-rP", "-o", "faulthandler_timeout=3600", *session.posargs)


@nox.session
def autobahn(session: nox.Session) -> None:
    """The Autobahn test suite against WebSockets through a gateway; takes minutes: nox -s autobahn [-- --cases 1.*]."""
    session.install("-q", "-e", ".[server,ws]", "wsproto", "virtualenv<20.22")  # the last that makes Python 2.7's
    session.run("python", "tests/foreign/autobahn.py", *session.posargs)


@nox.session
def requests(session: nox.Session) -> None:
    """The tests of `requests`, with our gateway in front of their httpbin: nox -s requests -- CHECKOUT [ARGUMENTS]."""
    if not session.posargs:
        session.error("say where a checkout of https://github.com/psf/requests is: nox -s requests -- CHECKOUT")
    checkout = Path(session.posargs[0]).resolve()
    session.install("-q", ".[server]", "-e", f"{checkout}[socks]", *HTTPBIN_TOOLS)
    plugins = ("-p", "no:httpbin", "-p", "no:fastapi_mesh", "-p", "requests_plugin", "-p", "no:cacheprovider")
    # Those two wait for an address that nobody answers at, which some networks do not have; no httpbin is asked.
    others = [f"--deselect={_TIMEOUTS}::{name}" for name in ("test_connect_timeout", "test_total_timeout_connect")]
    with session.chdir(checkout):
        path = os.fspath(Path(__file__).parent / "tests" / "foreign")
        session.run("pytest", "tests", "-q", *plugins, *others, *session.posargs[1:], env={"PYTHONPATH": path})


@nox.session
def cache_tests(session: nox.Session) -> None:
    """Run http-tests/cache-tests against a gateway's cache: nox -s cache_tests -- PATH_OF_CHECKOUT [--id TEST]."""
    session.install("-q", "-e", ".[server]", "pytest>=9")
    session.run("python", "-m", "tests.foreign.cache_tests", *session.posargs)


@nox.session
def httpx(session: nox.Session) -> None:
    """The client tests of `httpx` on httpx2, through a mesh: nox -s httpx -- CHECKOUT [ARGUMENTS]."""
    if not session.posargs:
        session.error("say where a checkout of https://github.com/encode/httpx is: nox -s httpx -- CHECKOUT")
    session.install(
        "-q", ".[server]", "pytest>=8,<9", "trio", "trustme", "chardet", "httpx2[brotli,zstd,http2,socks,cli]"
    )
    # Proxies are the business of a transport that we replace.
    theirs = (
        "tests/client",
        "tests/test_timeouts.py",
        "tests/test_asgi.py",
        "--ignore",
        "tests/client/test_proxies.py",
    )
    options = (
        "-c",
        os.devnull,
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:fastapi_mesh",
        "-p",
        "httpx_plugin",
    )
    foreign = os.fspath(Path(__file__).parent / "tests" / "foreign")
    with session.chdir(session.posargs[0]):
        path = os.pathsep.join((os.fspath(Path.cwd()), foreign))
        session.run("pytest", *theirs, "-q", *options, *session.posargs[1:], env={"PYTHONPATH": path})


@nox.session
def starlette(session: nox.Session) -> None:
    """The tests of Starlette, each application under our middleware: nox -s starlette -- CHECKOUT [ARGUMENTS]."""
    if not session.posargs:
        session.error("say where a checkout of https://github.com/Kludex/starlette is: nox -s starlette -- CHECKOUT")
    checkout = Path(session.posargs[0]).resolve()
    session.install("-q", ".[server]", "fastapi==0.143.*", f"{checkout}[full]", *STARLETTE_TOOLS)
    options = ("-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-p", "no:fastapi_mesh")
    # These fail without us too: root may read everything, and httpx accepts more encodings by now.
    others = [f"--deselect=tests/{name}" for name in _FAIL_ANYHOW]
    foreign = os.fspath(Path(__file__).parent / "tests" / "foreign")
    path = os.pathsep.join((os.fspath(checkout), foreign))
    with session.chdir(checkout):
        session.run(
            *("pytest", "tests", "-q", *options, "-p", "starlette_plugin", *others, *session.posargs[1:]),
            env={"PYTHONPATH": path},
        )


@nox.session
def servers(session: nox.Session) -> None:
    """Install the real servers that tests and benchmarks run against (Debian packages, so as root): nox -s servers."""
    session.run("python", "tests/support/servers.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the directions of imports, and the sizes of files."""
    session.install("-q", *LINT_TOOLS, "-e", ".")
    sources = [source for source in SOURCES if Path(source).exists()]
    session.run("ruff", "check", *sources)
    session.run("ruff", "format", "--check", *sources)
    session.run("lint-imports")
    _check_sizes(session)


def _check_sizes(session: nox.Session) -> None:
    """Names what is long, the package's files first; a test file may be twice as long as what it tests."""
    too_long = []
    for source in SOURCES:
        factor = 2 if source == "tests" else 1
        sizes = {path: len(path.read_text().splitlines()) for path in _python_files(Path(source))}
        for path, lines in sorted(sizes.items(), key=lambda item: -item[1]):
            if lines > LONG * factor:
                session.log(f"{path}: {lines} lines, over {LONG * factor}: are there two ideas in it?")
            if lines > TOO_LONG * factor:
                too_long.append(str(path))
    if too_long:
        session.error(f"too long: {', '.join(too_long)}")


def _python_files(source: Path) -> list[Path]:
    return [source] if source.suffix == ".py" else sorted(source.rglob("*.py"))


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of the package."""
    stubs = ("types-PyYAML", "types-jmespath", "types-xmltodict")
    session.install("-q", *TYPE_TOOLS, "-e", EXTRAS, *stubs, "pytest>=8.4")
    session.run("mypy", *session.posargs)


@nox.session
def bare(session: nox.Session) -> None:
    """With no extra installed: import every module that needs none, and measure what importing costs."""
    session.install("-q", ".")
    # Without -P the script's own folder would come first, and its redis.py before the package of that name.
    session.run("python", "-P", "tests/support/bare.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation strictly, and run every snippet in it, in the README and in the examples."""
    session.install("-q", "-e", ".[cli,redis,dns,transform,ws,yaml]", *DOCS_TOOLS)
    session.run("zensical", "build", "--strict", "--clean")
    session.run("pytest", "tests/docs", "tests/examples", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The gateway's CPU per request beside its peers, measured in one run: nox -s bench [-- gateway --rounds 3]."""
    session.install("-q", ".[server]", *BENCH_TOOLS)
    names = [name for name in session.posargs[:1] if not name.startswith("-")]
    arguments = session.posargs[len(names) :]
    for script in names or sorted(path.stem for path in Path("benchmarks").glob("*.py") if path.stem[0] != "_"):
        session.run("python", f"benchmarks/{script}.py", *arguments, env={"PYTHONPATH": os.fspath(Path.cwd())})
