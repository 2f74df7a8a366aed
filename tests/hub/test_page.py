"""The snippets of the page about the Hub run against one."""

from __future__ import annotations

from server_kit import ROOT, User


def test_the_page_about_the_hub_runs(alice: User, repo) -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from snippets_kit import ROOT, run_page\n"
        "from saft_hf.assets import demo_folder\n"
        # A pushed scorer names a model of the Hub, not a folder: here the reader names it.
        "named = {'_pretrained(\"me/my-scorer\"': f'_pretrained(\"alice/my-scorer\", model={str(demo_folder())!r}'}\n"
        "run_page(ROOT / 'docs' / 'hub.md', {**named, 'me/': 'alice/'})"
    )
    done = alice.run(code)
    assert done.returncode == 0, done.err[-4000:]
    for name, kind in (("my-scorer", "models"), ("my-rows", "datasets"), ("other-rows", "datasets")):
        assert repo(f"alice/{name}", kind).settings["private"] is True
        assert "saft" in repo(f"alice/{name}", kind).card()
