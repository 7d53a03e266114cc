"""Reasons for distrust: each with an id that never changes, a severity and a sentence.

Knows:      what can be wrong with a checkpoint, and how bad it is.
Is told:    nothing.
Never asks: how any of it is detected (`judge`), or how it is shown (`report`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptaudit.containers import Gap

__all__ = ["RULES", "Coverage", "Finding", "Rule", "Severity"]


class Severity(str, Enum):
    """How much distrust; the verdict on a file is the worst of its findings.

    >>> max([Severity.REVIEW, Severity.MALICIOUS, Severity.CLEAN]).value
    'malicious'
    """

    CLEAN = "clean"
    REVIEW = "review"
    SUSPICIOUS = "suspicious"
    MALICIOUS = "malicious"

    @property
    def rank(self) -> int:
        """Place on the ladder, 0 for clean."""
        return tuple(Severity).index(self)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank < other.rank

    def __le__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank <= other.rank

    def __gt__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank > other.rank

    def __ge__(self, other: object) -> bool:
        return isinstance(other, Severity) and self.rank >= other.rank


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding.

    Attributes:
        id: Stable; ``CKA1..`` is about what a pickle would do, ``CKA2..`` about the framing,
            ``CKA3..`` about the weights.
        severity: How bad it is.
        title: What is wrong, for a list of rules.
        why: Why it matters, what an honest file looks like, and what to do.
        cwe: The weakness it is an instance of, or that a reader with this rule does not have;
            an id of the Common Weakness Enumeration.
        advisories: Published ids of what taught it; empty where nobody published it.
        taught_by: What else taught it: a paper, a specification, the code of a loader; "" if
            the advisories say it all.
    """

    id: str
    severity: Severity
    title: str
    why: str
    cwe: str
    advisories: tuple[str, ...]
    taught_by: str

    @property
    def learnt_from(self) -> tuple[str, ...]:
        """All that taught it; never empty."""
        return (*self.advisories, *([self.taught_by] if self.taught_by else []))


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for distrust.

    Attributes:
        rule: Id of the rule; stable.
        severity: How bad it is.
        message: What was found; printable ASCII, not stable.
        record: The record it stands in, or "" for the file as a whole.
        offset: Byte offset in the file, or None where the record is compressed.
        stream_offset: Byte offset in the record's own, uncompressed bytes, or None.
        length: Bytes that it is about, from either offset on: an instruction with its argument,
            a record, bytes left over; None if that is not known.
        known: Whether the baseline has it; None where there is no baseline.
    """

    rule: str
    severity: Severity
    message: str
    record: str
    offset: int | None
    stream_offset: int | None = None
    length: int | None = None
    known: bool | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether all of the file was read and understood.

    Attributes:
        complete: True if nothing was left out.
        gaps: What was not read, and why, in printable ASCII; the first few hundred, and then
            how many more there were.
    """

    complete: bool
    gaps: tuple[Gap, ...]


RULES: dict[str, Rule] = {}


def _rule(
    rule_id: str,
    severity: Severity,
    title: str,
    why: str,
    *,
    cwe: str,
    advisories: tuple[str, ...] = (),
    taught_by: str = "",
) -> None:
    RULES[rule_id] = Rule(
        rule_id, severity, title, " ".join(why.split()), cwe, advisories, taught_by
    )


# What a pickle would do.

_rule(
    "CKA101",
    Severity.MALICIOUS,
    "names something that can run code or reach the system",
    """
    Loading the file with pickle would import this name and, where it is called, run it with the
    arguments shown: that is how a checkpoint becomes a program. No checkpoint needs such a name;
    weights are made of tensors, numbers and text. Do not load the file anywhere. Delete it, tell
    whoever hosts it, and treat a machine that has loaded it as taken over.
    """,
    cwe="CWE-506",
    advisories=("CVE-2025-1716", "CVE-2025-10157", "GHSA-vvpj-8cmc-gx39", "CVE-2025-1889"),
)
_rule(
    "CKA102",
    Severity.SUSPICIOUS,
    "names something that is not on the allowlist",
    """
    A name that is not known to be harmless may do anything when it is imported or called: ways to
    run code have been found in more than a hundred ordinary library functions, so that no list of
    bad names is ever complete. Checkpoints of weights get by with the few names of the allowlist;
    training scripts sometimes add a class of their own. Find out what the name is and why it is
    there. If you can vouch for it, permit the pair in a policy; if not, ask the author for the
    weights alone, or convert with --allow-unsafe, which executes nothing and keeps the tensors
    only.
    """,
    cwe="CWE-502",
    advisories=("CVE-2025-10157",),
    taught_by="arXiv:2508.19774, which found 133 such functions",
)
_rule(
    "CKA103",
    Severity.SUSPICIOUS,
    "calls something that no checkpoint calls",
    """
    The name is allowed, but not what is done with it: arguments that no pickler writes, the result
    of one call called by another, or items stored in an object that may bring its own method for
    that. Harmless names have been used for harm in this way, up to writing into memory through a
    tensor. What torch.save writes never does this. Get the file from its author again, and do not
    load it until somebody has explained the call.
    """,
    cwe="CWE-502",
    advisories=("CVE-2026-24747",),
)
_rule(
    "CKA104",
    Severity.MALICIOUS,
    "names something computed while unpickling",
    """
    The name is not written in the file: it comes out of a call, an extension code or a value that
    is no text, so that nobody can tell beforehand what would be imported. Picklers write names as
    plain text; only somebody who hides one does not. Do not load the file.
    """,
    cwe="CWE-470",
    taught_by="PEP 307 on the extension registry, and load_stack_global in CPython's "
    "Modules/_pickle.c, which takes the name from any two values",
)
_rule(
    "CKA105",
    Severity.MALICIOUS,
    "names an attribute of an attribute, or a hidden one",
    """
    A dotted name walks from an allowed object through its attributes to one that is not, such as
    torch.serialization.os.system; names with double underscores or strange letters get around lists
    of names in other ways. Honest pickles name what stands at the top of a module. Do not load the
    file; if a class inside a class of your own project is meant, save a state dict instead.
    """,
    cwe="CWE-470",
    advisories=("CVE-2025-71353", "CVE-2025-71356", "GHSA-vv6j-3g6g-2pvj"),
)
_rule(
    "CKA106",
    Severity.SUSPICIOUS,
    "has a persistent id that is not a storage",
    """
    A persistent id is how torch's pickles point to the bytes of a tensor, and it is the loader that
    acts on it. One of another form reaches code of the loader that is not made for it; an old one
    for modules made torch compare, and write, source files. torch.save writes a storage's class,
    key, device and size, and nothing else. Ask the author to save the state dict with a current
    torch.
    """,
    cwe="CWE-502",
    taught_by="persistent_load and _check_container_source of _legacy_load in "
    "torch/serialization.py",
)
_rule(
    "CKA107",
    Severity.SUSPICIOUS,
    "sets the state of something that has none",
    """
    Unpickling would overwrite attributes of an object, a class or a function: enough to put code
    where a later call finds it, or to make an array take bytes of the file for pointers. Honest
    pickles give state only to objects they have just made, and only the state that class writes. Do
    not load the file.
    """,
    cwe="CWE-915",
    advisories=("GHSA-mhc9-48gj-9gp3",),
)
_rule(
    "CKA108",
    Severity.REVIEW,
    "holds objects of a class, not only tensors",
    """
    The file is a whole model, saved with torch.save(model): loading it imports the class from your
    installed packages and hands it attributes of the file's choosing. That is common and mostly
    honest, but the class runs its own code and is not in the file. Convert the file: only its
    tensors are kept. Or ask the author for model.state_dict().
    """,
    cwe="CWE-502",
    taught_by="arXiv:2508.15987, on how many popular models a restrictive loader refuses",
)
_rule(
    "CKA109",
    Severity.REVIEW,
    "has opcodes that no pickler writes",
    """
    The pickle was not written by pickle: it has values left over at its end, a protocol in its
    middle, a frame of the wrong length or a place for a memo that does not exist. Loaders accept
    much of that, and hand-made pickles use it to confuse whoever reads before them. Alone it is
    odd; beside another finding it is a sign of intent. Only text of Python 2 in an old encoding is
    mostly honest. Look at the other findings, and save the weights again with a current torch if
    the file is your own.
    """,
    cwe="CWE-1286",
    taught_by="python/cpython issues 126992, 126996, 126997, 135241 and 135321, where CPython's "
    "own readers of pickles disagree",
)
_rule(
    "CKA110",
    Severity.SUSPICIOUS,
    "holds a pickle that the loader reads as something else",
    """
    There is a pickle where the loader of weights sees none: behind the end of another, or in a
    record that nothing refers to. Another program, or an older version of the same one, may load
    it, and a scanner that reads only what torch reads never looks at it. torch.save writes one
    pickle into a zip, and five in a fixed order into the older formats. Do not load the file with
    anything else than the converted weights.
    """,
    cwe="CWE-436",
    advisories=("CVE-2025-1889", "CVE-2026-53875"),
)
_rule(
    "CKA111",
    Severity.REVIEW,
    "holds a tensor whose indices or inner sizes loaders do not check",
    """
    The indices of a sparse tensor say where in memory its values belong, and a nested tensor brings
    sizes and offsets of its own. torch does not check them when it loads, so that those out of
    range read and write beyond the tensor. Weights of image models are dense. Load the file, if you
    must, with torch.sparse.check_sparse_tensor_invariants enabled, which looks at the indices; a
    nested tensor is safe only from somebody you trust.
    """,
    cwe="CWE-129",
    taught_by="_validate_loaded_sparse_tensors in torch/_utils.py, which in torch 2.13 returns at "
    "once unless told otherwise",
)

_rule(
    "CKA112",
    Severity.REVIEW,
    "costs its reader far more than its bytes",
    """
    A few kilobytes can stand for more values than fit into memory, nest deeper than a reader can
    follow, or fill a memo with one index: whoever loads or prints them runs out of memory, time
    or stack. Honest checkpoints stand for about as much as they are long. Ask whoever made the
    file why it does not; do not open it with a reader that has no limits.
    """,
    cwe="CWE-400",
    taught_by="CPython's Modules/_pickle.c: a memo as long as its highest index, and an opcode for "
    "any number of values",
)

_rule(
    "CKA113",
    Severity.REVIEW,
    "brings a checkpoint along, pickled, and unpickles it",
    """
    A tensor that is pickled without torch.save keeps its storage as the bytes of a checkpoint, and
    a call of torch.load with no protection to read them. The bytes were read here and judged like
    a file of their own, so that what they would run is told. But nothing holds the tensor against
    the storage inside, and torch refuses such files by default. Load it where you trust its author,
    and save it again with torch.save.
    """,
    cwe="CWE-502",
    taught_by="_load_from_bytes in torch/storage.py",
)

# The framing around it.

_rule(
    "CKA201",
    Severity.SUSPICIOUS,
    "looks different to different zip readers",
    """
    A zip says most things twice: in front of each record and in the directory at its end. Here the
    two disagree, or names occur twice, or there are two directories; so torch, Python and a scanner
    may each read another file out of the same bytes, and the one that was found harmless need not
    be the one that is loaded. What torch.save writes has one reading. Convert it, which keeps what
    was judged, or get it from its author again.
    """,
    cwe="CWE-436",
    advisories=("CVE-2025-1944", "CVE-2025-1945", "CVE-2025-10156"),
)
_rule(
    "CKA202",
    Severity.SUSPICIOUS,
    "has bytes that belong to nothing",
    """
    Between, before or behind the parts of the file there are bytes that its format gives no
    meaning. Another reader may begin there: a file can be a harmless archive to one program and a
    pickle, or another archive, to the next. In the files that torch writes every byte belongs to a
    record, its header, its padding or the directory. A damaged or concatenated download looks like
    this too: fetch it again and compare its hash.
    """,
    cwe="CWE-436",
    advisories=("CVE-2025-32434",),
)
_rule(
    "CKA203",
    Severity.REVIEW,
    "has records that torch does not write or refer to",
    """
    The archive holds something beside the weights: a record torch has no name for, a storage under
    a name that is no number, or one that no tensor refers to. Loaders of weights pass it over;
    other programs may not, and it may be a payload that waits for one. Tools that add a readme or a
    preview to the archive cause this honestly. Look at what it is; a converted file has the weights
    and nothing else.
    """,
    cwe="CWE-1288",
    advisories=("CVE-2025-32434",),
)
_rule(
    "CKA204",
    Severity.SUSPICIOUS,
    "has a storage that is missing or of the wrong size",
    """
    The pickle says how many elements a storage has, and the file holds another number of bytes for
    it, or none, or two records claim to be it. Versions of torch that believed the pickle read and
    wrote beyond the end of the memory they had. An honest file is like this only if it was cut
    short. Fetch it again and compare its hash; do not load it with torch older than 2.10.
    """,
    cwe="CWE-1284",
    advisories=("CVE-2026-24747",),
)
_rule(
    "CKA205",
    Severity.REVIEW,
    "contains TorchScript code",
    """
    A TorchScript archive is a program: torch.jit.load compiles and runs what it holds, and that
    code is not judged here. Such files are made on purpose, by torch.jit.save, for running without
    the model's Python source. Run it only if you would run a program from the same author; it is
    never converted.
    """,
    cwe="CWE-829",
    advisories=("CVE-2025-32434",),
)
_rule(
    "CKA206",
    Severity.SUSPICIOUS,
    "breaks the schedule of its own format",
    """
    The older formats begin with a magic number, a protocol version and a description of the system,
    each a pickle of its own that holds one plain value. Here one of them is something else, such as
    a value that has to be computed, and computing it is code. Loaders unpickle all of them before
    they compare anything. No version of torch has written such a file: do not load it.
    """,
    cwe="CWE-1286",
    advisories=("CVE-2026-53875",),
)
_rule(
    "CKA207",
    Severity.SUSPICIOUS,
    "has a tensor that does not lie inside its storage",
    """
    A tensor's offset, shape and strides say which elements of a storage it consists of; these point
    outside. A loader that does not check them shows, or overwrites, other memory of the process.
    torch.save cannot write this. Such a tensor is never converted; do not load the file with a
    loader of your own.
    """,
    cwe="CWE-1285",
    taught_by="_rebuild_tensor and _rebuild_tensor_v2 in torch/_utils.py, which hand offset, size "
    "and strides to set_()",
)
_rule(
    "CKA208",
    Severity.REVIEW,
    "was not read completely",
    """
    Part of the file was recognised but not read: it is damaged, of a format that is not followed,
    or beyond the limits of what one file may cost. What was not read was not judged, and a reader
    that gives up in silence is what attackers count on, so that such a file is never called clean.
    The coverage lists each gap with its reason and its place. Fetch a damaged file again; unpack a
    packed one and scan what is in it.
    """,
    cwe="CWE-636",
    taught_by="nullifAI, published by ReversingLabs in February 2025: payloads in broken pickles "
    "and in an archive that was not opened",
)
_rule(
    "CKA209",
    Severity.REVIEW,
    "has bytes in its storages that no tensor shows",
    """
    A storage is longer than what the tensors on it show of it. What lies in the rest is loaded with
    the file, seen by nobody, and may be anything: a payload for another program, or weights that
    were meant to be gone. The honest cause is a slice saved without clone(), which brings all it
    was cut from. A converted file does not have those bytes; if you are the author, clone the
    slices before you save them.
    """,
    cwe="CWE-1288",
    taught_by="PyTorch's notes on serialization: a view is saved with all of its storage",
)
_rule(
    "CKA210",
    Severity.REVIEW,
    "has a tensor that is many times larger than what is stored",
    """
    A tensor with a stride of zero shows one element many times, and a few bytes can pass for a
    terabyte. Loading it costs nothing, and the first copy all there is: whoever moves it to another
    device, converts or adds to it runs out of memory. Expanded tensors are honest where they are
    small. This one is not converted; ask the author for what it was made of.
    """,
    cwe="CWE-400",
    taught_by="torch.Tensor.expand, which repeats elements by a stride of zero",
)

# The weights.

_rule(
    "CKA301",
    Severity.REVIEW,
    "has weights that do not fit the type asked for",
    """
    Numbers beyond 65504 have no value in fp16 and would become infinite; in float8_e4m3fn, whose
    largest number is 448, they would become NaN. A tensor that holds one stays in the type it has,
    or is clamped, or stops the conversion, as --on-overflow says; neither is written in silence. A
    single large weight among small ones is often damage, or a scale kept among the weights. Compare
    the model's output before and after.
    """,
    cwe="CWE-681",
    taught_by="IEEE 754-2019, 3.6 and 4.3.1: the largest finite binary16 is 65504",
)
_rule(
    "CKA302",
    Severity.REVIEW,
    "has NaN or infinite values",
    """
    A NaN among the weights makes every result it touches a NaN: black images, or text that stops.
    Training that diverged leaves them, and so does an earlier conversion that overflowed. They are
    kept as they are; in float8_e4m3fn, which has no infinity, a NaN stands for one. Go back to a
    checkpoint without them, or find out which tensor it is and whether anything uses it.
    """,
    cwe="CWE-754",
    taught_by="IEEE 754-2019, 6.2: an operation on a NaN gives a NaN",
)
_rule(
    "CKA303",
    Severity.REVIEW,
    "counts positions wrongly",
    """
    A text encoder numbers the tokens of a prompt 0, 1, 2 and so on, in int64. Tools that cast
    every tensor to half precision made 76 into 75.99 and then into 75, so that two tokens share a
    place and prompts mean something else; the model still runs. A conversion leaves such a tensor
    out: every loader makes its own. To keep it as it is, convert with --precision keep.
    """,
    cwe="CWE-681",
    taught_by="files descended from Anything v3, whose last position is 75",
)
_rule(
    "CKA304",
    Severity.REVIEW,
    "lacks tensors of its model",
    """
    Some loaders stop at a missing tensor, others take what the model before it left in memory, and
    give images of a model that is in no file. Every file that a training or a merge writes has all
    of them. Find the whole file, or bring the missing part from the model that it was made from.
    """,
    cwe="CWE-1295",
    taught_by="what diffusers, ComfyUI and the WebUI do with a file that lacks one tensor",
)
_rule(
    "CKA305",
    Severity.REVIEW,
    "has tensors of a wrong shape",
    """
    The name is that of a known model, and the shape is not: another kind of model under this
    one's names, a part of one, or damage. A loader stops at it, or crashes. Nothing is reshaped
    here.
    """,
    cwe="CWE-131",
    taught_by="what stable-diffusion.cpp and diffusers do with a misshapen tensor",
)
_rule(
    "CKA306",
    Severity.REVIEW,
    "has what another tool left",
    """
    Training tools leave their own tensors among the weights of a model. Loaders pass over them;
    they take space, and a reader may take the file for something it is not. They are kept and
    named in the report; --other drop leaves them out, with everything else that is no part of the
    model.
    """,
    cwe="CWE-1164",
    taught_by="merges and trainings of Stable Diffusion 1.x",
)
_rule(
    "CKA307",
    Severity.REVIEW,
    "has averaged copies of a part of the weights only",
    """
    Training keeps a moving average of every weight. Where only some have one, --ema use makes a
    model out of two: averaged weights beside others. Use the weights themselves, or find the
    whole file.
    """,
    cwe="CWE-1295",
    taught_by="ldm/modules/ema.py, which averages every trained weight",
)
_rule(
    "CKA308",
    Severity.REVIEW,
    "spells names a second time",
    """
    The same tensor is there under another prefix or inside a nested state dict. Which of the two
    a loader takes depends on the loader. The canonical name is written; a second copy that is
    equal is stored once and named in the metadata, one that is not is kept under its own key.
    """,
    cwe="CWE-694",
    taught_by="files of NovelAI's lineage, with a state dict inside the state dict",
)
_rule(
    "CKA309",
    Severity.REVIEW,
    "has a VAE in a type in which it cannot run",
    """
    The activations of SDXL's VAE are larger than fp16 can hold, so that images turn black; its
    weights are not, so that no cast shows it. A loader has to run it in fp32 or bf16, or the VAE
    has to be one that was mended for fp16. A conversion to fp16 leaves a VAE in fp32 as it is.
    """,
    cwe="CWE-681",
    taught_by="the notes on SDXL's VAE in fp16 of those who mended it",
)
_rule(
    "CKA310",
    Severity.REVIEW,
    "has weights that are zero throughout",
    """
    A matrix, a kernel or the gain of a norm in which every number is 0 lets nothing through: the
    layer behind it sees no picture and no prompt. A part that was emptied, a merge with a factor of
    0, an interrupted download filled up with zeros, and training that never began leave such. A
    bias may be zero, and so may the layers through which a ControlNet adds to its model, which
    begin at zero. Nothing is repaired here: take the file from where it came once more, or bring
    the tensor from the model that it was made from.
    """,
    cwe="CWE-1295",
    taught_by="ControlNet's zero convolutions, the only weights that are meant to begin at zero",
)
_rule(
    "CKA311",
    Severity.REVIEW,
    "has averaged copies that are the weights themselves",
    """
    Training keeps a moving average of every weight, which is another number unless the weight
    never changed. Copies that are equal to the last bit say that nothing was trained, that the part
    was frozen, or that a tool put the averages in place of the weights and kept both. They take
    space and give nothing: --ema drop, the default, leaves them out without loss, and --ema use
    gives the same model.
    """,
    cwe="CWE-1164",
    taught_by="ldm/modules/ema.py, which averages every trained weight",
)
