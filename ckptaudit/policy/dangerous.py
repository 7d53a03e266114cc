"""Names that run code, or reach files, processes or the network.

Knows:      the standard library's ways out, and those of packages that load checkpoints.
Is told:    a module and a name.
Never asks: whether the name is allowed.  What is missing here is no less distrusted for
            that; it is only called suspicious and not malicious.
"""

from __future__ import annotations

__all__ = ["LOADS_CHECKPOINT", "dangerous"]

# What torch's storages pickle themselves by without torch.save: torch.load of the bytes it
# is given.  It is as harmless as they are, so it is dangerous where they were not read.
LOADS_CHECKPOINT = ("torch.storage", "_load_from_bytes")

# Whatever these offer, no checkpoint needs it.
_DANGEROUS_MODULES = frozenset(
    """
    os posix nt ntpath posixpath sys subprocess _posixsubprocess shutil pty commands popen2
    importlib imp runpy pkgutil zipimport ctypes _ctypes cffi code codeop pdb bdb
    marshal types _pickle pickle cPickle cloudpickle dill joblib shelve operator _operator functools
    socket _socket ssl http urllib urllib2 requests ftplib smtplib imaplib webbrowser
    multiprocessing threading _thread asyncio signal atexit gc inspect linecache
    timeit profile cProfile trace doctest pydoc idlelib lib2to3 ensurepip pip distutils setuptools
    tempfile io _io fileinput glob platform yaml logging
    _xxsubinterpreters _interpreters test site _aix_support _osx_support _pyrepl difflib mlflow
    numpy.f2py numpy.testing pandas.core.computation pandas.io
    torch.fx._lazy_graph_module torch.fx.graph_module torch.jit.unsupported_tensor_ops torch.package
    torch.utils.bottleneck torch.utils.collect_env torch.utils.cpp_extension
    torch.utils.data.datapipes.utils.decoder
    """.split()
)
# They hold a function, attributes, and the name of a log; `allowlist` says with which arguments.
_HARMLESS = {("functools", "partial"), ("types", "SimpleNamespace"), ("logging", "getLogger")}
# A module's name is looked at so far: a hostile one may be of a megabyte, in ever so many parts.
_LONGEST = max(map(len, _DANGEROUS_MODULES)) + 1
_DANGEROUS_NAMES = frozenset(
    {
        *(
            (module, name)
            for module in ("builtins", "__builtin__", "__builtins__")
            for name in (
                "eval",
                "exec",
                "execfile",
                "compile",
                "open",
                "file",
                "input",
                "getattr",
                "setattr",
                "delattr",
                "__import__",
                "apply",
                "globals",
                "locals",
                "vars",
                "map",
                "filter",
                "breakpoint",
                "type",
                "memoryview",
            )
        ),
        ("copyreg", "add_extension"),
        ("copy_reg", "add_extension"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch.serialization", "load"),
        LOADS_CHECKPOINT,
        ("codecs", "open"),
        ("numpy", "load"),
        ("uuid", "_get_command_stdout"),
        ("uuid", "_popen"),
        *(
            ("pandas", name)
            for name in (
                "eval",
                *(
                    f"read_{what}"
                    for what in (
                        "clipboard csv excel feather fwf gbq hdf html json orc parquet pickle sas"
                        " spss sql sql_query sql_table stata table xml"
                    ).split()
                ),
            )
        ),
    }
)


def dangerous(module: str, name: str) -> bool:
    """Whether the pair is known to run code or to reach files, processes or the network."""
    if (module, name) in _DANGEROUS_NAMES or (module, name) in _HARMLESS:
        return (module, name) in _DANGEROUS_NAMES
    parts = module[:_LONGEST].split(".")
    return any(".".join(parts[:end]) in _DANGEROUS_MODULES for end in range(1, len(parts) + 1))
