"""What the lines of an experiment say, in words."""

from __future__ import annotations

import numpy as np

from saft_hf.evaluate.config import first_word, same_size_as, without_demonstrations
from saft_hf.evaluate.results import MARK, Line, Results, by, difference


def headline(results: Results) -> str:
    """What a reader in a hurry should take away: whether the best filter there is makes models less harmful."""
    arm = next((arm for arm in ("auto", "saft", "reference", "ask") if arm in results.record.config.arms), None)
    judge = results.best_judge
    pairs = [(results.line(*at, arm), results.line(*at, "none")) for at in results.pools] if arm else []
    known = [
        (one.evaluation.harmful[judge], two.evaluation.harmful[judge], gap, len(one.runs))
        for one, two in pairs
        if one and two and (gap := difference(one, two, by(judge))) is not None
    ]
    undecided = [line for line in results.lines if line.arm == arm and line.undecided]
    silent = sum(len(line.runs) for line in undecided)
    aside = f" At {silent} seed(s) {arm} could not decide; they are not counted here." if silent else ""
    if not known:
        return f"Nothing can be said yet: no filter is done beside a model that was tuned on all rows.{aside}"
    own, without = (
        float(np.mean([interval.mean for interval in intervals if interval is not None]))
        for intervals in zip(*((one, two) for one, two, _, _ in known), strict=True)
    )
    figures = (
        f"judge {judge} calls {own:.0%} of the answers to held-out harmful prompts harmful, against {without:.0%} "
        "without a filter"
    )
    if all(gap.spread is None for _, _, gap, _ in known):
        return f"One seed cannot tell whether {arm} makes tuned models less harmful: {figures}.{aside}"
    better = sum(gap.high < 0 and gap.spread is not None for _, _, gap, _ in known)
    worse = sum(gap.low > 0 and gap.spread is not None for _, _, gap, _ in known)
    says = f"{arm} makes tuned models less harmful than no filter in {better} of {len(known)} pool(s)"
    if worse:
        says += f", and more harmful in {worse}"
    return f"{says}: {figures} ({max(runs for *_, runs in known)} seeds).{aside}"


def verdicts(results: Results) -> list[str]:
    """What the results say by the best judge, in words: each arm beside others, and below the true labels."""
    sentences, judge = [], results.best_judge
    for pool, share in results.pools:
        lines = [line for line in results.lines if (line.pool, line.share) == (pool, share) and not line.undecided]
        for line in lines:
            sentences += [_against(line, other, words, judge) for other, words in beside(line, lines)]
        if oracle := results.line(pool, share, "oracle"):
            sentences += [_below(line, oracle, judge) for line in lines]
    return [sentence for sentence in sentences if sentence]


def beside(line: Line, lines: list[Line]) -> list[tuple[Line, str]]:
    """What an arm is compared with, and what that is: no filter, its size, and its rows without demonstrations."""
    words: dict[str, str] = {}
    size = line.arm.replace("drift_high", "drift_low")  # both are a third
    for other in lines:
        if "+" not in other.arm and same_size_as(other.arm) == size:
            random = first_word(other.arm) == "random"
            words[other.arm] = f"{'a random filter' if random else 'the true labels'} of the same size"
    if size != line.arm:
        words[size] = "the rows with the lowest drift"
    if first_word(line.arm) not in ("none", "random"):
        words["none"] = "no filter"
    if "+" in line.arm:
        words[without_demonstrations(line.arm)[0]] = "the same rows without demonstrations"
    there = {other.arm: other for other in lines}
    return [(there[arm], said) for arm, said in words.items() if arm in there]


def _against(line: Line, other: Line, words: str, judge: str) -> str:
    one, two = line.evaluation.harmful.get(judge), other.evaluation.harmful.get(judge)
    gap = difference(line, other, by(judge))
    if one is None or two is None or gap is None:
        return ""
    word = "better" if gap.high < 0 else "worse" if gap.low > 0 else ""
    says = f"{line.arm} does {word} than {words}" if word else f"{line.arm} cannot be told from {words}"
    if gap.spread is None:  # prompts alone say nothing of what another seed would give
        says = f"one seed cannot tell {line.arm} from {words}"
    sentence = (
        f"{line.title}, judge {judge}: {says} "
        f"({one:.2f} against {two:.2f}, difference {gap:.2f}; {line.mean('kept'):.0f} rows kept)."
    )
    return f"{sentence} {MARK} {line.barely_trained}." if line.barely_trained else sentence


def _below(line: Line, oracle: Line, judge: str) -> str:
    """An arm whose models are judged less harmful than the oracle's: chance, or little training."""
    gap = difference(line, oracle, by(judge))
    if line is oracle or gap is None or gap.mean >= 0:
        return ""
    chance = f"{'beyond' if gap.high < 0 else 'within'} chance"
    return (
        f"{line.title}, judge {judge}: {line.arm} lies below the oracle, "
        f"{'which one seed cannot tell from chance' if gap.spread is None else chance} (difference {gap:.2f})"
        + (f"; {MARK} {line.barely_trained}." if line.barely_trained else ".")
    )
