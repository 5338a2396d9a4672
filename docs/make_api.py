"""Write docs/api.md from the docstrings of the library.

    python docs/make_api.py

It reads the source files and imports none of them, so the result is the same
with every version of Python and Keras. It documents all public classes and
functions, and those of their methods that have a docstring and that Keras does
not call by itself (`CALLED_BY_KERAS`).
"""

import ast
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
MODULES = """ind_rnn_cell ind_rnn indy_cell indy deep_ind_rnn
    ind_rnn_normalization ind_rnn_optimizer dilated_rnn reset_rnn
    ind_rnn_recurrence parallel_scan""".split()
CALLED_BY_KERAS = """build call compute_mask compute_output_shape from_config
    get_config inner_loop quantize save_own_variables update_step""".split()
HEADER = """\
<!-- fmt: off -->

# API

All public classes and functions. `python docs/make_api.py` writes this file
from the docstrings: change them, not this file.

Axis letters: B batch, T time steps, F input features, N units, d dilation.

"""
# What an entry of a list begins with: "dropout, seed: Text."
NAME = r"(?:\*{0,2}\w+|All others)"
ENTRY = re.compile(rf"^({NAME}(?:,\s+{NAME})*):(?=\s)", re.MULTILINE)


def generate():
    """The text of docs/api.md."""
    contents, sections = [], []
    trees = {f"{name}.py": parse(f"{name}.py") for name in MODULES}
    names = {node.name for tree in trees.values() for node in public(tree)}
    for module, tree in trees.items():
        contents.append(f"- [{module}](#{anchor(module)})")
        sections += [f"## {module}", prose(summary(tree), names)]
        for node in public(tree):
            link = f"[`{node.name}`](#{anchor(node.name)})"
            contents.append(f"  - {link}: {prose(summary(node))}")
            sections += entry(node, names - {node.name})
    return HEADER + "\n\n".join(["\n".join(contents), *sections]) + "\n"


def parse(module):
    return ast.parse((ROOT / module).read_text("utf-8"))


def public(node):
    """The classes and functions of a module or class, but private ones."""
    kinds = ast.ClassDef, ast.FunctionDef
    nodes = [child for child in node.body if isinstance(child, kinds)]
    return [child for child in nodes if not child.name.startswith("_")]


def docstring(node):
    return ast.get_docstring(node) or ""


def summary(node):
    return docstring(node).split("\n\n")[0]


def anchor(title):
    """What GitHub calls a heading in links."""
    return re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")


def entry(node, names):
    """The blocks of Markdown for a class or function."""
    blocks = [f"### `{node.name}`", fence(signature(node), "py")]
    blocks += markdown(docstring(node), names, level=4)
    for method in public(node) if isinstance(node, ast.ClassDef) else []:
        if method.name not in CALLED_BY_KERAS and docstring(method):
            title = f"{node.name}.{method.name}"
            if "property" not in map(ast.unparse, method.decorator_list):
                title += f"({', '.join(arguments(method)[1:])})"
            blocks.append(f"#### `{title}`")
            blocks += markdown(docstring(method), names, level=5)
    return blocks


def signature(node):
    """name(arguments), with one argument a line if it is long."""
    shown = None
    if isinstance(node, ast.FunctionDef):
        shown = arguments(node)
    elif "NamedTuple" in map(ast.unparse, node.bases):
        shown = [x.target.id for x in node.body if isinstance(x, ast.AnnAssign)]
    for child in node.body:
        if getattr(child, "name", None) == "__init__":
            shown = arguments(child)[1:]
    if shown is None:
        base = ast.unparse(node.bases[-1])
        return f"{node.name}(...)  # the arguments of {base}"
    line = f"{node.name}({', '.join(shown)})"
    if len(line) <= 80:
        return line
    return "\n".join([f"{node.name}(", *(f"    {x}," for x in shown), ")"])


def arguments(function):
    args = function.args
    shown = [x.arg for x in args.args + args.kwonlyargs]
    defaults = args.defaults + args.kw_defaults
    for index, value in enumerate(defaults, len(shown) - len(defaults)):
        if value is not None:
            shown[index] += "=" + ast.unparse(value).replace("'", '"')
    if args.vararg or args.kwonlyargs:
        star = f"*{args.vararg.arg if args.vararg else ''}"
        shown.insert(len(args.args), star)
    return shown + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


def markdown(text, names, level):
    """The blocks of a docstring: prose, code, and sections with headings."""
    blocks = []
    # Split where a line without indentation follows an empty one.
    for part in re.split(r"\n\n(?=\S)", text):
        title, _, body = part.partition("\n")
        if title.endswith(":") and body.startswith("    "):
            blocks.append("#" * level + f" {title[:-1]}")
            body = textwrap.dedent(body)
            if ENTRY.match(body):
                blocks.append(entries(body, names))
            else:
                blocks += markdown(body, names, level)
        elif part.startswith(">>>"):
            blocks.append(fence(part, "pycon"))
        elif part.startswith("    "):
            blocks.append(fence(textwrap.dedent(part)))
        else:
            first, *code = re.split(r"\n\n(?=    )", part, maxsplit=1)
            blocks.append(prose(first, names))
            blocks += [fence(textwrap.dedent(x)) for x in code]
    return blocks


def entries(text, names):
    """A list of what arguments, weights or exceptions mean."""
    lines = []
    _, *parts = ENTRY.split(text)
    for terms, meaning in zip(parts[::2], parts[1::2]):
        if not terms.endswith("thers"):  # "All others"
            terms = re.sub(r"[*\w]+", r"`\g<0>`", " ".join(terms.split()))
        lines.append(f"- {terms}: {prose(meaning.strip(), names)}")
    return "\n".join(lines)


def prose(text, names=()):
    """Text in one line; code that is one of `names` links to it."""

    def safe(match):
        found, code = match.group(), match.group().strip("`")
        if found == code:
            return f"\\{found}"
        return f"[{found}](#{anchor(code)})" if code in names else found

    text = re.sub(r"\n(?!- )\s*", " ", text)
    return re.sub(
        r"`[^`]*`|(?<!\w)_|(?<=\S)\*|\*(?=\S)|<(?=[A-Za-z/!])", safe, text
    )


def fence(code, language=""):
    return f"```{language}\n{code}\n```"


if __name__ == "__main__":
    (ROOT / "docs/api.md").write_text(generate(), "utf-8")
