"""docs/reliability.md says what the committed results say."""

from tools import reliability

CHAOS = {
  "mode": "corrupt",
  "disturbances": 12,
  "in_a_save": 3,
  "before_a_step": 2,
  "went_back": 5,
  "saves_failed": 0,
  "damage": ["x"] * 5,
  "equal": True,
  "arrays": 200,
  "losses": 90,
  "steps": 90,
  "steps_redone": 31,
  "steps_redone_at_most": 7,
  "seconds_redone": 4.5,
  "seconds_all_lives": 90.0,
  "checkpoint_every": 5,
  "made": {"command": "python chaos.py --mode corrupt --kills 12 --out a/b.json"},
}


def test_the_page_shows_every_committed_result():
  shown = reliability.MARKED.search(reliability.PAGE.read_text())[2]
  assert shown.strip() == reliability.table(reliability.load())


def test_rows_of_chaos_and_of_others_share_a_table():
  other = {
    "rows": [{"what": "a host | killed", "times": 3, "outcome": "named in 9 s"}],
    "command": "python -m pytest x",
  }
  head, _, first, second = reliability.table([CHAOS, other]).splitlines()
  assert head.count("|") == first.count("|") == second.count("|") == 5
  assert "`python -m tools.chaos --mode corrupt --kills 12`" in first
  assert "5 times; the run found 5" in first and "| 12 |" in first
  assert "200 arrays" in first and "equal bit for bit" in first
  assert second == "| a host / killed | 3 | named in 9 s | `python -m pytest x` |"
  failed = reliability.table([CHAOS | {"equal": False}])
  assert "NOT equal" in failed
