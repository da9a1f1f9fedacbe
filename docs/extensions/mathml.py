"""A Markdown extension: formulas between dollar signs become MathML when the site is built.

Browsers draw MathML by themselves, so that no page loads a script or a font for its formulas.
"""

import re
import xml.etree.ElementTree as ET

from latex2mathml.converter import convert_to_element
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

# As Pandoc reads them: no space inside the dollars, no digit after the closing one.
_INLINE = r"(?<![\\$])\$(?![\s$])((?:\\.|[^\\$])+?)(?<!\s)\$(?![\d$])"
_DISPLAY = re.compile(r"\A\s*\$\$(.+)\$\$\s*\Z", re.DOTALL)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match, data: str) -> tuple[ET.Element, int, int]:  # noqa: N802
        return convert_to_element(m.group(1)), m.start(0), m.end(0)


class _Display(BlockProcessor):
    def test(self, parent: ET.Element, block: str) -> bool:
        return _DISPLAY.match(block) is not None

    def run(self, parent: ET.Element, blocks: list[str]) -> None:
        formula = _DISPLAY.match(blocks.pop(0))
        assert formula is not None
        holder = ET.SubElement(parent, "div", {"class": "formula"})
        holder.append(convert_to_element(formula.group(1).strip(), display="block"))


class MathML(Extension):
    """Registers both forms; code spans and code blocks are read before them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """See `markdown.Extension`."""
        # Below code spans (190), above escapes (180), which would eat backslashes.
        md.inlinePatterns.register(_Inline(_INLINE, md), "mathml", 185)
        md.parser.blockprocessors.register(_Display(md.parser), "mathml", 95)


def makeExtension(**options: object) -> MathML:  # noqa: N802
    """What Python-Markdown calls."""
    return MathML(**options)
