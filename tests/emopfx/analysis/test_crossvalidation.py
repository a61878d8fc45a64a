import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from emopfx.analysis.crossvalidation import Floats, Held, Ints, Task, cross_validate, shuffle_within
from emopfx.analysis.probes import centre, variant_tasks

QUESTIONS = 50
C = 0.1


def panel(variants: int, shift: float, *, width: int = 20) -> tuple[Floats, Ints, Ints]:
    """Return rows of two sites, `[2, n, width]`, that tell variants apart at the second; labels; questions."""
    draw = np.random.default_rng(1)
    labels, question = np.tile(np.arange(variants), QUESTIONS), np.repeat(np.arange(QUESTIONS), variants)
    rows = draw.normal(size=(2, len(labels), width)) * draw.uniform(0.1, 30, width) + draw.normal(size=width)
    rows[1] += shift * rows[1].std(axis=0) * np.eye(width)[labels]
    return rows.astype(np.float32), labels, question


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
    task = Task("variant", tuple("abcd"[:variants]), labels)
    (held,) = cross_validate(rows, question, [task], 5, C, 0)
    for site in (0, 1):
        accuracy, values = by_hand(rows[site], labels, held)
        # A row on the border may fall to either side.
        assert held.accuracy(site).value == pytest.approx(accuracy, abs=1.01 / len(labels))
        for fold in range(5):
            logits = held.logits[site][:, held.fold == fold].T
            expected = values[fold].reshape(len(logits), -1)
            assert np.abs(logits - logits.mean(1, keepdims=True) * (variants > 2) - expected).max() < 0.05


def test_auc_is_the_share_of_pairs_in_the_right_order_within_folds() -> None:
    rows, labels, question = panel(2, 1.5)
    (held,) = cross_validate(rows, question, [Task("x", ("a", "b"), labels)], 5, C, 0)
    right = pairs = 0
    for fold in range(5):
        scores, own = held.logits[1, 0, held.fold == fold], labels[held.fold == fold]
        right += int((scores[own == 1][:, None] > scores[own == 0][None, :]).sum())
        pairs += int((own == 1).sum() * (own == 0).sum())
    found = held.auc(1)
    assert found.value == pytest.approx(right / pairs)
    assert found.low is not None
    assert found.high is not None
    assert 0.5 < found.low < found.value < found.high <= 1
    # Folds differ little, so that the pooled AUC is near.
    assert found.value == pytest.approx(roc_auc_score(labels, held.logits[1, 0]), abs=0.03)


def test_auc_of_several_classes_is_the_mean_of_each_against_the_rest() -> None:
    rows, labels, question = panel(4, 1.0)
    (held,) = cross_validate(rows, question, [Task("x", tuple("abcd"), labels)], 5, C, 0)
    each = []
    for label in range(4):
        right = pairs = 0.0
        for fold in range(5):
            logits, own = held.logits[1][:, held.fold == fold], labels[held.fold == fold] == label
            shares = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
            right += float(roc_auc_score(own, shares[label])) * own.sum() * (~own).sum()
            pairs += own.sum() * (~own).sum()
        each.append(right / pairs)
    assert held.auc(1).value == pytest.approx(np.mean(each), abs=1e-6)


def test_the_auc_interval_covers_as_often_as_it_says() -> None:
    """Two normals a deviation apart have AUC Φ(1/√2); they are scored as they are, without a probe."""
    draw, labels, question = np.random.default_rng(3), np.tile([0, 1], 60), np.repeat(np.arange(60), 2)
    noise = draw.normal(size=(400, 1, 120)) + np.repeat(draw.normal(size=(400, 1, 60)), 2, axis=2)
    scores: Floats = (noise + labels * 2**0.5).astype(np.float32)
    task, none = Task("x", ("a", "b"), labels), np.zeros((400, 1, 1), np.float32)
    held = Held(task, labels, question % 5, question, scores, scores, none, none[..., 0])
    found = [held.auc(site) for site in range(400)]
    covered = [f.low is not None and f.high is not None and f.low <= 0.7602 <= f.high for f in found]
    assert 0.92 < np.mean(covered) < 0.98


def test_a_question_is_in_one_fold_and_its_identity_says_nothing() -> None:
    """Each question is recognisable at once, its answers to one variant carry the label of another question's."""
    draw = np.random.default_rng(2)
    question = np.repeat(np.arange(QUESTIONS), 4)
    rows = np.repeat(10 * draw.normal(size=(1, QUESTIONS, 20)), 4, axis=1).astype(np.float32)
    # All answers to a question have one label: only who has seen the question could name it.
    labels = np.repeat(draw.integers(0, 2, QUESTIONS), 4)
    (held,) = cross_validate(rows, question, [Task("x", ("a", "b"), labels)], 5, C, 0)
    assert all(len(np.unique(held.fold[question == code])) == 1 for code in range(QUESTIONS))
    assert sorted(np.bincount(held.fold)) == [40] * 5
    accuracy, auc = held.accuracy(0), held.auc(0)
    assert accuracy.low is not None
    assert accuracy.low < 0.5
    assert auc.low is not None
    assert auc.low < 0.5
    within = centre(rows, question)
    assert np.abs(within).max() < 1e-4


def test_labels_are_shuffled_within_each_question() -> None:
    draw = np.random.default_rng(0)
    question = np.array([2, 0, 1, 0, 2, 1, 0, 1, 2])
    labels = np.array([0, 1, -1, 2, 2, 0, 0, 1, 1])
    seen = {tuple(shuffle_within(labels, question, draw)) for _ in range(200)}
    assert len(seen) > 20
    for shuffled in map(np.array, seen):
        assert shuffled[2] == -1
        assert all(sorted(shuffled[question == code]) == sorted(labels[question == code]) for code in range(3))


def test_what_never_varies_is_at_chance_exactly() -> None:
    question = np.repeat(np.arange(20), 2)
    rows = np.full((1, 40, 8), 0.3, np.float32)
    (held,) = cross_validate(rows, question, variant_tasks(["control", "calm"] * 20, question), 5, C, 0)
    assert (held.auc(0).value, held.accuracy(0).value, held.majority()) == (0.5, 0.5, 0.5)
    assert not held.weights.any()


def test_pairs_that_are_alike_but_for_rounding_are_at_chance_and_disturb_nothing() -> None:
    draw = np.random.default_rng(5)
    question = np.repeat(np.arange(12), 2)
    labels = np.tile([0, 1], 12)
    rows = np.repeat(draw.normal(size=(3, 12, 64)), 2, axis=1)
    rows[0] *= 1 + 1e-7 * draw.normal(size=(24, 1))
    rows[2] += 300 * labels[:, None]
    task = Task("x", ("a", "b"), labels)
    (held,) = cross_validate(rows.astype(np.float32), question, [task], 5, 0.01, 0)
    assert np.isfinite(held.logits).all()
    assert [held.auc(site).value for site in range(3)] == [0.5, 0.5, 1.0]
