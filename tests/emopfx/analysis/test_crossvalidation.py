import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from emopfx.analysis.crossvalidation import Held, assign_folds, cross_validate, features_of, shuffle_within
from emopfx.analysis.curvature import Curvature
from emopfx.analysis.tasks import Floats, Ints, Task, centre, correct_task, variant_tasks

QUESTIONS = 50
C = 0.1


def panel(variants: int, shift: float, *, width: int = 20) -> tuple[Floats, Ints, Ints]:
    """Return rows of two sites, `[2, n, width]`, that tell variants apart at the second; labels; questions."""
    draw = np.random.default_rng(1)
    labels, question = np.tile(np.arange(variants), QUESTIONS), np.repeat(np.arange(QUESTIONS), variants)
    rows = draw.normal(size=(2, len(labels), width)) * draw.uniform(0.1, 30, width) + draw.normal(size=width)
    rows[1] += shift * rows[1].std(axis=0) * np.eye(width)[labels]
    return rows.astype(np.float32), labels, question


def task(labels: Ints, classes: str) -> Task:
    return Task("x", tuple(classes), labels, np.arange(len(labels)))


def held_out(rows: Floats, question: Ints, task: Task, c: float = C) -> Held:
    """Cross-validate a task at one place, in five folds."""
    features = features_of(rows)
    return cross_validate(features, question, assign_folds(question, 5, 0), task, c, 0, Curvature(features, c))


def by_hand(rows: Floats, labels: Ints, held: Held) -> tuple[float, list[Floats]]:
    """The same with scikit-learn, fold by fold: the share that is told right, and the held-out decision values."""
    hits, values = 0, []
    for fold in range(5):
        out = held.fold == fold
        scaler = StandardScaler().fit(rows[~out])
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(rows[~out]), labels[~out])
        hits += int((model.predict(scaler.transform(rows[out])) == labels[out]).sum())
        values.append(model.decision_function(scaler.transform(rows[out])))
    return hits / len(labels), values


@pytest.mark.parametrize("variants", [2, 4])
def test_probes_are_scikit_learns_fold_by_fold(variants: int) -> None:
    rows, labels, question = panel(variants, 1.0)
    for site in (0, 1):
        held = held_out(rows[site], question, task(labels, "abcd"[:variants]))
        accuracy, values = by_hand(rows[site], labels, held)
        # A row on the border may fall to either side.
        assert held.accuracy().value == pytest.approx(accuracy, abs=1.01 / len(labels))
        for fold in range(5):
            logits = held.logits[:, held.fold == fold].T
            expected = values[fold].reshape(len(logits), -1)
            assert np.abs(logits - logits.mean(1, keepdims=True) * (variants > 2) - expected).max() < 0.05


def test_auc_is_the_share_of_pairs_in_the_right_order_within_folds() -> None:
    rows, labels, question = panel(2, 1.5)
    held = held_out(rows[1], question, task(labels, "ab"))
    right = pairs = 0
    for fold in range(5):
        scores, own = held.logits[0, held.fold == fold], labels[held.fold == fold]
        right += int((scores[own == 1][:, None] > scores[own == 0][None, :]).sum())
        pairs += int((own == 1).sum() * (own == 0).sum())
    found = held.auc()
    assert found.value == pytest.approx(right / pairs)
    assert found.low is not None
    assert found.high is not None
    assert 0.5 < found.low < found.value < found.high <= 1
    # Folds differ little, so that the pooled AUC is near.
    assert found.value == pytest.approx(roc_auc_score(labels, held.logits[0]), abs=0.03)


def test_auc_of_several_classes_is_the_mean_of_each_against_the_rest() -> None:
    rows, labels, question = panel(4, 1.0)
    held = held_out(rows[1], question, task(labels, "abcd"))
    each = []
    for label in range(4):
        right = pairs = 0.0
        for fold in range(5):
            logits, own = held.logits[:, held.fold == fold], labels[held.fold == fold] == label
            shares = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
            right += float(roc_auc_score(own, shares[label])) * own.sum() * (~own).sum()
            pairs += own.sum() * (~own).sum()
        each.append(right / pairs)
    assert held.auc().value == pytest.approx(np.mean(each), abs=1e-6)


def test_the_auc_interval_covers_as_often_as_it_says() -> None:
    """Two normals a deviation apart have AUC Φ(1/√2); they are scored as they are, without a probe."""
    draw, labels, question = np.random.default_rng(3), np.tile([0, 1], 60), np.repeat(np.arange(60), 2)
    noise = draw.normal(size=(400, 1, 120)) + np.repeat(draw.normal(size=(400, 1, 60)), 2, axis=2)
    scores: Floats = (noise + labels * 2**0.5).astype(np.float32)
    none = np.zeros((1, 1), np.float32)
    found = [Held(task(labels, "ab"), labels, question % 5, question, own, own, none, none[0]).auc() for own in scores]
    covered = [f.low is not None and f.high is not None and f.low <= 0.7602 <= f.high for f in found]
    assert 0.92 < np.mean(covered) < 0.98


def test_a_question_is_in_one_fold_and_its_identity_says_nothing() -> None:
    """Each question is recognisable at once, its answers to one variant carry the label of another question's."""
    draw = np.random.default_rng(2)
    question = np.repeat(np.arange(QUESTIONS), 4)
    rows = np.repeat(10 * draw.normal(size=(QUESTIONS, 20)), 4, axis=0).astype(np.float32)
    # All answers to a question have one label: only who has seen the question could name it.
    labels = np.repeat(draw.integers(0, 2, QUESTIONS), 4)
    held = held_out(rows, question, task(labels, "ab"))
    assert all(len(np.unique(held.fold[question == code])) == 1 for code in range(QUESTIONS))
    assert sorted(np.bincount(held.fold)) == [40] * 5
    accuracy, auc = held.accuracy(), held.auc()
    assert accuracy.low is not None
    assert accuracy.low < 0.5
    assert auc.low is not None
    assert auc.low < 0.5
    within = centre(rows, question, np.tile(np.arange(4), QUESTIONS), held.fold)
    assert np.abs(within).max() < 1e-4


def test_labels_are_shuffled_within_each_question() -> None:
    draw = np.random.default_rng(0)
    question = np.array([2, 0, 1, 0, 2, 1, 0, 1, 2])
    labels = np.array([0, 1, 1, 2, 2, 0, 0, 1, 1])
    seen = {tuple(shuffle_within(labels, question, draw)) for _ in range(200)}
    assert len(seen) > 20
    for shuffled in map(np.array, seen):
        assert all(sorted(shuffled[question == code]) == sorted(labels[question == code]) for code in range(3))


def test_a_variant_that_nothing_is_left_of_is_no_class() -> None:
    # Every question of anxiety has only answers of anxiety.
    variants, question = ["control", "calm"] * 3 + ["anxiety"] * 2, np.array([0, 0, 1, 1, 2, 2, 3, 4])
    every, *_ = variant_tasks(variants, "control", question)
    assert every.classes == ("control", "calm")
    assert every.labels.tolist() == [0, 1] * 3
    assert every.rows.tolist() == list(range(6))


def test_what_never_varies_is_at_chance_exactly() -> None:
    question = np.repeat(np.arange(20), 2)
    rows = np.full((40, 8), 0.3, np.float32)
    (calm,) = variant_tasks(["control", "calm"] * 20, "control", question)
    held = held_out(rows, question, calm)
    assert (held.auc().value, held.accuracy().value, held.majority()) == (0.5, 0.5, 0.5)
    assert not held.weights.any()


def test_pairs_that_are_alike_but_for_rounding_are_at_chance_and_disturb_nothing() -> None:
    draw = np.random.default_rng(5)
    question = np.repeat(np.arange(12), 2)
    labels = np.tile([0, 1], 12)
    rows = np.repeat(draw.normal(size=(3, 12, 64)), 2, axis=1)
    rows[0] *= 1 + 1e-7 * draw.normal(size=(24, 1))
    rows[2] += 300 * labels[:, None]
    helds = [held_out(site.astype(np.float32), question, task(labels, "ab"), 0.01) for site in rows]
    assert all(np.isfinite(held.logits).all() for held in helds)
    assert [held.auc().value for held in helds] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(("offset", "scale"), [(5000.0, 1.0), (0.0, 1e-7), (0.0, 1e6)])
def test_features_far_from_zero_and_tiny_ones_count_like_others(offset: float, scale: float) -> None:
    rows, labels, question = panel(2, 1.0)
    shifted = (offset + scale * rows[1].astype(np.float64)).astype(np.float32)
    held = held_out(shifted, question, task(labels, "ab"))
    accuracy, values = by_hand(shifted.astype(np.float64), labels, held)
    assert held.accuracy().value == pytest.approx(accuracy, abs=1.01 / len(labels))
    for fold in range(5):
        assert np.abs(held.logits[0, held.fold == fold] - values[fold]).max() < 0.05
    # The weights of all rows are in units of the rows as they are.
    scaler = StandardScaler().fit(shifted.astype(np.float64))
    scaled = scaler.transform(shifted.astype(np.float64))
    expected = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaled, labels).decision_function(scaled)
    assert np.abs(shifted.astype(np.float64) @ held.weights[0] + held.bias[0] - expected).max() < 0.05


def confounded(seed: int, *, variant: float, right: float, width: int) -> tuple[float, float]:
    """Return AUC and selectivity where right answers are a matter of the variant, or lie along a direction too."""
    draw = np.random.default_rng(seed)
    variants, questions = 6, 60
    question, own = np.repeat(np.arange(questions), variants), np.tile(np.arange(variants), questions)
    labels = draw.random(len(own)) < np.linspace(0.1, 0.9, variants)[own]
    rows = draw.normal(size=(len(own), width)) + 3 * draw.normal(size=(questions, width))[question]
    rows[:, 0] += variant * own + right * labels
    # Some answers are missing.
    there = np.flatnonzero(draw.random(len(own)) < 0.9)
    rows, question, own, labels = rows[there], question[there], own[there], labels[there]
    correct = correct_task(labels.tolist(), question)
    codes = np.unique(question[correct.rows], return_inverse=True)[1]
    fold = assign_folds(codes, 5, seed)
    within = centre(rows[correct.rows].astype(np.float32), codes, own[correct.rows], fold)
    features = features_of(within)
    held = cross_validate(features, codes, fold, correct, 0.01, seed, Curvature(features, 0.01))
    return held.auc().value, held.accuracy().value - held.accuracy(shuffled=True).value


@pytest.mark.parametrize("width", [8, 400])
def test_who_sees_only_the_variant_does_not_know_what_is_right(width: int) -> None:
    auc, selectivity = np.mean([confounded(seed, variant=5, right=0, width=width) for seed in range(12)], axis=0)
    assert auc == pytest.approx(0.5, abs=0.03)
    assert selectivity == pytest.approx(0, abs=0.05)


def test_what_is_right_is_found_beside_the_variant() -> None:
    auc, selectivity = np.mean([confounded(seed, variant=5, right=2.5, width=8) for seed in range(4)], axis=0)
    assert auc > 0.7
    assert selectivity > 0.1


def test_questions_and_variants_are_taken_out_of_panels_with_gaps() -> None:
    draw = np.random.default_rng(0)
    question, variant = np.repeat(np.arange(30), 4), np.tile(np.arange(4), 30)
    there = draw.random(120) < 0.7
    question, variant = np.unique(question[there], return_inverse=True)[1], variant[there]
    fold = question % 3
    effects = 5 * draw.normal(size=(30, 6))[question] + 900 * draw.normal(size=(4, 6))[variant]
    noise = draw.normal(size=effects.shape)
    rows, alone = ((rows).astype(np.float32) for rows in (effects + noise, noise))
    within = centre(rows, question, variant, fold)
    assert np.abs(within - centre(alone, question, variant, fold)).max() < 1e-3
    for code, number in {(code, number) for code, number in zip(variant, fold, strict=True)}:
        assert np.abs(within[(variant == code) & (fold == number)].mean(axis=0)).max() < 1e-4
