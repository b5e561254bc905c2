"""Text normalisation as a data option: fewer spellings of the same thing, so less dependence on which one is in use.

| data.normalize | does                                                                                  |
|----------------|---------------------------------------------------------------------------------------|
| nfkc           | Unicode NFKC: full-width to half-width letters and digits, half-width to full kana, ligatures |
| casefold       | lower case, for every script                                                          |
| whitespace     | runs of blanks become one space, blank ends of lines and of the text go               |

`data.terminology` names a CSV file of two columns, variant and canonical: every variant is replaced, the longest
first, in one pass (a replacement is never replaced again). Variants are matched after the steps above, which are
applied to them too.
"""

import csv
import pathlib
import re
import unicodedata

from dlm_jax import files


def _whitespace(text):
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(lines).strip()


STEPS = {
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "casefold": str.casefold,
    "whitespace": _whitespace,
}


def make_normalizer(steps=(), terminology=""):
    """Returns a function str -> str.

    Args:
      steps: names of STEPS, applied in this order.
      terminology: path of a CSV file, or "".
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a step is unknown; if a line is not two columns, a variant is empty or has two canonical forms.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ValueError(f"normalize={unknown[0]!r}: must be one of {', '.join(STEPS)}")

    def clean(text):
        for step in steps:
            text = STEPS[step](text)
        return text

    if not terminology:
        return clean
    table = {}
    for variant, canonical in _read_terms(terminology).items():
        if table.setdefault(clean(variant), canonical) != canonical:
            raise ValueError(
                f"{terminology}: {variant!r} becomes {clean(variant)!r} as another variant does, and they have two "
                f"canonical forms, {table[clean(variant)]!r} and {canonical!r}"
            )
    for canonical in set(table.values()):
        table.setdefault(clean(canonical), canonical)  # what is right already is not replaced inside
    table.pop("", None)
    # A word is replaced as a whole where it begins or ends with a letter of a script that spaces its words.
    pattern = re.compile("|".join(_pattern_of(variant) for variant in sorted(table, key=len, reverse=True)))
    return lambda text: pattern.sub(lambda found: table[found[0]], clean(text))


def digest(steps, terminology):
    """Returns a value that changes whenever normalised text may change."""
    return [list(steps), files.sha256(terminology) if terminology else ""]


# Letters and digits of scripts that put spaces between words, up to Armenian.
_SPACED = r"[0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02ff\u0370-\u058f]"


def _pattern_of(variant):
    before = f"(?<!{_SPACED})" if re.match(_SPACED, variant[0]) else ""
    after = f"(?!{_SPACED})" if re.match(_SPACED, variant[-1]) else ""
    return before + re.escape(variant) + after


def _read_terms(path):
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data.terminology={str(path)!r}: no such file")
    table = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if not row or (reader.line_num == 1 and [cell.strip() for cell in row] == ["variant", "canonical"]):
                    continue
                if len(row) != 2 or not row[0].strip():
                    raise ValueError(f"{path}:{reader.line_num}: must be two columns, variant and canonical, not {row}")
                variant, canonical = (cell.strip() for cell in row)
                if table.setdefault(variant, canonical) != canonical:
                    raise ValueError(
                        f"{path}:{reader.line_num}: {variant!r} has two canonical forms, {table[variant]!r} and "
                        f"{canonical!r}"
                    )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not CSV: {error}") from None
    if not table:
        raise ValueError(f"{path}: holds no terms; must be lines of variant,canonical")
    return table
