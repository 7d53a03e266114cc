"""Headings A and D: names that run code, each of which a list of bad names once lacked.

A row is a name and the words it would be called with, all harmless.  Where an entry of
the catalogue lists several names under a range of numbers, each row has the whole range.
"""

from __future__ import annotations

from dataclasses import dataclass

from catalogue.case import DANGEROUS, DOTTED, NOT_LISTED, Hit


@dataclass(frozen=True)
class Gadget:
    """A name that was once overlooked.

    Attributes:
        entries: Numbers in the catalogue.
        module: As a pickle would spell it.
        name: As a pickle would spell it; with a dot, an attribute of an attribute.
        hit: What must be found.
        advisories: Where it was published.
    """

    entries: tuple[int, ...]
    module: str
    name: str
    hit: Hit
    advisories: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        """Module and name as one text."""
        return f"{self.module}.{self.name}"


TORCH = tuple(range(5, 13))
STDLIB = tuple(range(13, 31))
# Of this release GHSA-x843-g5mx-g377, -3329-ghmp-jmv5, -cffc-mxrf-mhh4, -rrxm-2pvv-m66x and
# -46h3-79wf-xr6c are known by their ids only.
LATER = tuple(range(32, 39))

_UNIX = "asyncio.unix_events"
_GUARDS = "torch._dynamo.guards"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_BOTTLENECK = "torch.utils.bottleneck.__main__"
_F2PY = "numpy.f2py.crackfortran"

GADGETS = (
    Gadget((1,), "pip", "main", DANGEROUS, ("CVE-2025-1716", "GHSA-655q-fx9r-782v")),
    Gadget((2,), "timeit", "timeit", DANGEROUS, ("GHSA-v7x6-rv5q-mhwc", "CVE-2025-71351")),
    Gadget(
        (3,),
        "ssl",
        "get_server_certificate",
        DANGEROUS,
        ("CVE-2025-46417", "GHSA-93mv-x874-956g"),
    ),
    Gadget((3,), "linecache", "getline", DANGEROUS, ("CVE-2025-46417", "GHSA-93mv-x874-956g")),
    Gadget((4,), "commands", "getoutput", DANGEROUS),
    Gadget((4,), "numpy.testing._private.utils", "runstring", DANGEROUS),
    # torch
    Gadget(TORCH, _GUARDS, "GuardBuilder.get", DOTTED, ("GHSA-86cj-95qr-2p4f", "CVE-2025-71353")),
    Gadget(
        TORCH,
        _SHAPES,
        "ShapeEnv.evaluate_guards_expression",
        DOTTED,
        ("GHSA-f4x7-rfwp-v3xw", "CVE-2025-71356"),
    ),
    Gadget(
        TORCH,
        "torch.utils.collect_env",
        "run",
        DANGEROUS,
        ("GHSA-f745-w6jp-hpxx", "CVE-2025-71350"),
    ),
    Gadget(
        TORCH, "torch.utils.collect_env", "run_and_read_all", DANGEROUS, ("GHSA-jhph-76pp-mggw",)
    ),
    Gadget(TORCH, _BOTTLENECK, "run_cprofile", DANGEROUS, ("GHSA-4r9r-ch6f-vxmx",)),
    Gadget(TORCH, _BOTTLENECK, "run_autograd_prof", DANGEROUS, ("GHSA-4whj-rm5r-c2v8",)),
    Gadget(
        TORCH,
        "torch.jit.unsupported_tensor_ops",
        "execWrapper",
        DANGEROUS,
        ("GHSA-vr7h-p6mm-wpmh",),
    ),
    Gadget(
        TORCH,
        "torch.utils.data.datapipes.utils.decoder",
        "basichandlers",
        DANGEROUS,
        ("GHSA-h3qp-7fh3-f8h4",),
    ),
    Gadget(
        TORCH,
        "torch.utils._config_module",
        "ConfigModule.load_config",
        DOTTED,
        ("GHSA-vv6j-3g6g-2pvj",),
    ),
    # The standard library
    Gadget(STDLIB, "trace", "Trace.run", DANGEROUS, ("GHSA-5qwp-399c-mjwf",)),
    Gadget(STDLIB, "trace", "Trace.runctx", DANGEROUS, ("GHSA-g344-hcph-8vgg",)),
    Gadget(STDLIB, "profile", "Profile.run", DANGEROUS, ("GHSA-x696-vm39-cp64",)),
    Gadget(STDLIB, "profile", "Profile.runctx", DANGEROUS, ("GHSA-6vqj-c2q5-j97w",)),
    Gadget(STDLIB, "lib2to3.pgen2.grammar", "Grammar.loads", DANGEROUS, ("GHSA-f54q-57x4-jg88",)),
    Gadget(
        STDLIB,
        "lib2to3.pgen2.pgen",
        "ParserGenerator.make_label",
        DANGEROUS,
        ("GHSA-p9w7-82w4-7q8m", "CVE-2025-71343"),
    ),
    Gadget(
        STDLIB, "idlelib.debugobj", "ObjectTreeItem.SetText", DANGEROUS, ("GHSA-3vg9-h568-4w9m",)
    ),
    Gadget(
        STDLIB,
        "idlelib.autocomplete",
        "AutoComplete.get_entity",
        DANGEROUS,
        ("GHSA-6w4w-5w54-rjvr", "CVE-2025-71358"),
    ),
    Gadget(
        STDLIB,
        "idlelib.autocomplete",
        "AutoComplete.fetch_completions",
        DANGEROUS,
        ("GHSA-7cq8-mj8x-j263", "CVE-2025-71376"),
    ),
    Gadget(
        STDLIB,
        "idlelib.calltip",
        "Calltip.fetch_tip",
        DANGEROUS,
        ("GHSA-8r4j-24qv-fmq9", "CVE-2025-71361"),
    ),
    Gadget(STDLIB, "idlelib.calltip", "get_entity", DANGEROUS, ("GHSA-9xph-j2h6-g47v",)),
    Gadget(
        STDLIB,
        "idlelib.run",
        "Executive.runcode",
        DANGEROUS,
        ("GHSA-m869-42cg-3xwr", "CVE-2025-71342"),
    ),
    Gadget(
        STDLIB,
        "idlelib.pyshell",
        "ModifiedInterpreter.runcommand",
        DANGEROUS,
        ("GHSA-j343-8v2j-ff7w",),
    ),
    Gadget(
        STDLIB,
        "idlelib.pyshell",
        "ModifiedInterpreter.runcode",
        DANGEROUS,
        ("GHSA-3gf5-cxq9-w223", "CVE-2025-71340"),
    ),
    Gadget(STDLIB, "code", "InteractiveInterpreter.runcode", DANGEROUS, ("GHSA-cj3c-v495-4xqh",)),
    Gadget(STDLIB, "doctest", "debug_script", DANGEROUS, ("GHSA-fqq6-7vqf-w3fg",)),
    Gadget(STDLIB, "cProfile", "run", DANGEROUS, ("GHSA-49gj-c84q-6qm9",)),
    Gadget(STDLIB, "cProfile", "runctx", DANGEROUS, ("GHSA-9w88-8rmg-7g2p",)),
    Gadget(STDLIB, "ensurepip", "_run_pip", DANGEROUS, ("GHSA-xp4f-hrf8-rxw7",)),
    Gadget(
        STDLIB,
        _UNIX,
        "_UnixSubprocessTransport._start",
        DANGEROUS,
        ("GHSA-q77w-mwjj-7mqx", "CVE-2025-71364"),
    ),
    # Submodules of what was on the list
    Gadget(
        (31,),
        "asyncio.subprocess",
        "create_subprocess_shell",
        DANGEROUS,
        ("CVE-2025-10157", "GHSA-f7qq-56ww-84cr"),
    ),
    Gadget((31,), "collections.abc", "OrderedDict", NOT_LISTED, ("CVE-2025-10157",)),
    Gadget((31,), "torch._utils.anything", "_rebuild_tensor_v2", NOT_LISTED, ("CVE-2025-10157",)),
    # Later releases
    Gadget(
        LATER,
        "distutils.file_util",
        "write_file",
        DANGEROUS,
        ("GHSA-m273-6v24-x4m4", "CVE-2025-71321"),
    ),
    Gadget(LATER, "ctypes", "CDLL", DANGEROUS, ("GHSA-4675-36f9-wf6r", "CVE-2025-71323")),
    Gadget(LATER, "pydoc", "locate", DANGEROUS, ("GHSA-84r2-jw7c-4r5q", "CVE-2025-71320")),
    Gadget(LATER, "operator", "methodcaller", DANGEROUS, ("GHSA-84r2-jw7c-4r5q",)),
    Gadget(LATER, "operator", "attrgetter", DANGEROUS, ("GHSA-84r2-jw7c-4r5q",)),
    Gadget(LATER, "_operator", "attrgetter", DANGEROUS, ("GHSA-955r-x9j8-7rhh",)),
    Gadget(
        LATER,
        "pty",
        "spawn",
        DANGEROUS,
        ("GHSA-vqmv-47xg-9wpr", "GHSA-hgrh-qx5j-jfwx", "CVE-2025-71322"),
    ),
    Gadget(LATER, _F2PY, "getlincoef", DANGEROUS, ("GHSA-r8g5-cgf2-4m4m",)),
    Gadget(LATER, _F2PY, "_eval_length", DANGEROUS, ("GHSA-6556-fwc2-fg2p", "CVE-2025-71339")),
    # Files
    Gadget((39,), "_io", "FileIO", DANGEROUS, ("GHSA-9726-w42j-3qjr", "CVE-2026-53872")),
    Gadget((39,), "urllib.request", "urlopen", DANGEROUS, ("GHSA-9726-w42j-3qjr",)),
    Gadget((40,), "logging", "FileHandler", DANGEROUS, ("GHSA-m7j5-r2p5-c39r",)),
    # Code objects
    Gadget((41,), "types", "CodeType", DANGEROUS, ("GHSA-9m3x-qqw2-h32h",)),
    Gadget((41,), "types", "FunctionType", DANGEROUS, ("GHSA-9m3x-qqw2-h32h",)),
    Gadget((41,), "cloudpickle.cloudpickle", "_make_function", DANGEROUS, ("GHSA-9m3x-qqw2-h32h",)),
    # Resolvers and runners
    Gadget((42,), "pkgutil", "resolve_name", DANGEROUS, ("GHSA-vvpj-8cmc-gx39",)),
    Gadget((43,), "uuid", "_get_command_stdout", DANGEROUS, ("GHSA-g38g-8gr9-h9xp",)),
    Gadget((43,), "_osx_support", "_read_output", DANGEROUS, ("GHSA-g38g-8gr9-h9xp",)),
    Gadget((43,), "_aix_support", "_read_cmd_output", DANGEROUS, ("GHSA-g38g-8gr9-h9xp",)),
    Gadget((43,), "imaplib", "IMAP4_stream", DANGEROUS, ("GHSA-g38g-8gr9-h9xp",)),
    Gadget((43,), "_pyrepl.pager", "pipe_pager", DANGEROUS, ("GHSA-g38g-8gr9-h9xp",)),
    Gadget(
        (43,),
        "test.support.script_helper",
        "assert_python_ok",
        DANGEROUS,
        ("GHSA-g38g-8gr9-h9xp",),
    ),
    Gadget((44,), "profile", "run", DANGEROUS, ("GHSA-7wx9-6375-f5wh",)),
    Gadget((45,), "importlib", "import_module", DANGEROUS),
    Gadget((45,), "marshal", "loads", DANGEROUS),
    Gadget((46,), "marshal", "load", DANGEROUS, ("GHSA-565g-hwwr-4pp3", "CVE-2025-67747")),
    Gadget((46,), "pty", "fork", DANGEROUS, ("GHSA-r7v6-mfhq-g3m2", "CVE-2025-67748")),
    Gadget((46,), "runpy", "run_path", DANGEROUS, ("GHSA-wfq2-52f7-7qvj", "CVE-2026-22606")),
    Gadget((46,), "cProfile", "runcall", DANGEROUS, ("GHSA-p523-jq9w-64x9", "CVE-2026-22607")),
    Gadget((46,), "ctypes", "PyDLL", DANGEROUS, ("GHSA-5hvc-6wx8-mvv4", "CVE-2026-22608")),
    Gadget((46,), "pydoc", "pipepager", DANGEROUS, ("GHSA-5hvc-6wx8-mvv4", "CVE-2026-22608")),
    Gadget(
        (46,),
        "ctypes.util",
        "_findLib_gcc",
        DANGEROUS,
        ("GHSA-q5qq-mvfm-j35x", "CVE-2026-22609"),
    ),
    Gadget((46,), "importlib.util", "find_spec", DANGEROUS, ("GHSA-q5qq-mvfm-j35x",)),
    Gadget((46,), "multiprocessing.process", "BaseProcess", DANGEROUS, ("GHSA-q5qq-mvfm-j35x",)),
    Gadget((46,), "_osx_support", "_find_executable", DANGEROUS, ("GHSA-5hwf-rc88-82xm",)),
    Gadget((46,), "linecache", "updatecache", DANGEROUS, ("GHSA-r48f-3986-4f9c",)),
    Gadget((46,), "difflib", "context_diff", DANGEROUS, ("GHSA-r48f-3986-4f9c",)),
    Gadget((46,), "gc", "get_objects", DANGEROUS, ("GHSA-r48f-3986-4f9c",)),
    Gadget((46,), "platform", "_syscmd_file", DANGEROUS, ("GHSA-5cxw-w2xg-2m8h",)),
    Gadget((46,), "_posixsubprocess", "fork_exec", DANGEROUS, ("GHSA-m6fh-58r7-x697",)),
    Gadget((46,), "site", "execsitecustomize", DANGEROUS, ("GHSA-m6fh-58r7-x697",)),
    Gadget((46,), "atexit", "register", DANGEROUS, ("GHSA-m6fh-58r7-x697",)),
    Gadget((46,), "_interpreters", "run_string", DANGEROUS, ("GHSA-6ggj-6f2q-f7mx",)),
    Gadget((46,), "_interpreters", "create", DANGEROUS, ("GHSA-6ggj-6f2q-f7mx",)),
    Gadget((47,), "multiprocessing.util", "spawnv_passfds", DANGEROUS),
    Gadget((47,), "mlflow.projects.backend.local", "_run_entry_point", DANGEROUS),
    Gadget((47,), "pandas", "read_csv", DANGEROUS),
    Gadget((47,), "pandas.io.parsers.readers", "read_csv", DANGEROUS),
    Gadget((47,), "yaml", "unsafe_load", DANGEROUS),
    Gadget((47,), "torch.storage", "_load_from_bytes", DANGEROUS),
    # What nobody needs an advisory for
    *(
        Gadget((46, 56), module, name, DANGEROUS, ("GHSA-h4rm-mm56-xf63", "CVE-2026-22612"))
        for module in ("builtins", "__builtin__")
        for name in ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__")
    ),
    *(
        Gadget((46,), module, name, DANGEROUS)
        for module, name in (
            ("os", "system"),
            ("posix", "system"),
            ("nt", "system"),
            ("os", "popen"),
            ("os", "execv"),
            ("subprocess", "Popen"),
            ("subprocess", "check_output"),
            ("sys", "settrace"),
            ("shutil", "rmtree"),
            ("webbrowser", "open"),
            ("socket", "create_connection"),
            ("pickle", "loads"),
            ("_pickle", "loads"),
            ("dill", "loads"),
            ("joblib", "load"),
            ("shelve", "open"),
            ("bdb", "Bdb"),
            ("pdb", "Pdb"),
            ("codecs", "open"),
            ("functools", "reduce"),
        )
    ),
    # Heading D: deserialisers of torch itself, and functions that call what they are given
    Gadget((72, 96), "torch", "load", DANGEROUS),
    Gadget((72, 96), "torch.serialization", "load", DANGEROUS),
    Gadget((72, 96), "torch.jit", "load", DANGEROUS),
    Gadget((72, 96), "torch.hub", "load", DANGEROUS),
    Gadget((72, 96), "numpy", "load", DANGEROUS),
    Gadget((96,), "torch._utils", "_rebuild_anything_else", NOT_LISTED),
    Gadget((96,), "torch.utils._pytree", "tree_map", NOT_LISTED),
)
