"""The style of the page. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from flanneld_masq.report.hooks import MARGIN, WIDTH
from flanneld_masq.report.markup import Markup

STYLE = Markup(
    """
:root { --ink: #1c1e21; --dim: #5c6470; --paper: #fff; --band: #f4f5f7; --rule: #d5d8dd;
  --good: #00795a; --wrong: #b8400b; --may: #8a6100; --skipped: #6d747f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #a0a7b2; --paper: #16181c; --band: #1f2228; --rule: #3a3f48;
    --good: #2fc79a; --wrong: #ff8a52; --may: #e8b030; --skipped: #8d95a1; } }
body { margin: 1.2rem; color: var(--ink); background: var(--paper); font: 14px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
h2 .badge { font-size: .9rem; margin-left: .6em; }
h3 { font-size: .9rem; margin: 0 0 .2rem; }
.about { margin: 0; color: var(--dim); } .legend { margin: .6rem 0; color: var(--dim); }
.board { width: max-content; max-width: 100%; overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.row { display: grid; grid-template-columns: 290px max-content; align-items: center; }
.head { background: var(--band); align-items: start; }
.label { padding: .5rem .7rem; overflow-wrap: anywhere; }
.label strong, .label small, li small, li code { display: block; } small, .none { color: var(--dim); }
.hooks { display: grid; grid-template-columns: repeat(5, WIDTHpx); padding: .5rem MARGINpx; }
.hooks > div { box-sizing: border-box; padding: 0 .5rem; border-left: 1px dashed var(--rule); overflow-wrap: anywhere; }
.hooks > div:last-child { border-right: 1px dashed var(--rule); }
.hooks ol { margin: 0; padding-left: 1.2rem; font-size: .82rem; } .hooks li { margin-bottom: .3rem; }
i { display: inline-block; font-style: normal; font-size: .78rem; padding: 0 .4em; margin-right: .25em;
  border: 1px solid var(--rule); border-radius: 1em; background: var(--paper); }
i.unknown { border-style: dashed; color: var(--dim); }
details { border-top: 1px solid var(--rule); } summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; } summary:hover { background: var(--band); }
summary:focus-visible { outline: 2px solid var(--ink); outline-offset: -2px; }
.more { padding: .2rem 1rem .8rem; background: var(--band); overflow-wrap: anywhere; }
.more p { margin: .35rem 0; } .steps { margin: .2rem 0; padding-left: 1.6rem; } .steps li { margin-bottom: .3rem; }
.decided { font-weight: 600; } code { font: 12px/1.4 ui-monospace, monospace; font-weight: normal; }
.good { --line: var(--good); } .wrong { --line: var(--wrong); } .may { --line: var(--may); }
.skipped { --line: var(--skipped); } .badge { color: var(--line); margin-right: .6em; }
svg { display: block; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg text.end { fill: var(--dim); } svg .way { stroke: var(--line); stroke-width: 4; }
svg .past { stroke: var(--line); stroke-width: 1.5; stroke-dasharray: 2 5; }
svg .may .way { stroke-dasharray: 9 5; } svg .head { fill: var(--line); }
svg circle { fill: var(--paper); stroke: var(--line); stroke-width: 1.5; }
svg .mark circle { fill: var(--line); } svg .mark .sign { fill: var(--paper); font-weight: 700; font-size: 12px; }
@media print { details > .more { display: block; } }
""".replace("WIDTH", str(WIDTH)).replace("MARGIN", str(MARGIN))
)
