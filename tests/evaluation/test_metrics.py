import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from vgg.evaluation.metrics import (
    Z95,
    auc_interval,
    average_precision,
    balanced_accuracy,
    binned,
    calibration_error,
    confusions,
    f1,
    macro_auc,
    mcnemar,
    operating_point,
    recalls,
    roc_auc,
    sensitivity_specificity,
    wilson,
)
from vgg.evaluation.report import _operating_points


@settings(max_examples=50)
@given(st.integers(1, 100_000), st.data())
def test_intervals_are_scipys(total, data):
    right = data.draw(st.integers(0, total))
    expected = stats.binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_at_the_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@settings(max_examples=50)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_test_is_scipys_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_test_is_exact_where_floats_end():
    assert mcnemar(0, 3000) == 0.0  # 2^-2999 is below the smallest float
    assert mcnemar(2400, 2600) == pytest.approx(stats.binomtest(2400, 5000).pvalue, rel=1e-9)


def test_the_calibration_error_is_the_mean_distance_from_the_diagonal():
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 0.05, 1.0, 0.0], np.float32)
    right = np.array([1, 1, 1, 0, 0, 1, 0], bool)
    counts, confidences, hits = sums = binned(confidence, right, 10)
    # Bins: (0.9, 1] has 0.95, 0.95, 1; (0.5, 0.6] has 0.55 twice; [0, 0.1] has 0.05 and 0.
    expected = (3 * abs(1 - (0.95 + 0.95 + 1) / 3) + 2 * abs(0.5 - 0.55) + 2 * abs(0 - 0.025)) / 7
    assert calibration_error(sums) == pytest.approx(expected, abs=1e-6)
    assert counts.tolist() == [2, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert math.isclose(confidences[5] / counts[5], 0.55, abs_tol=1e-6)
    assert hits.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    parts = binned(confidence[:3], right[:3], 10) + binned(confidence[3:], right[3:], 10)
    np.testing.assert_allclose(parts, sums)


def test_perfect_calibration_has_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    right = rng.random(200_000) < confidence
    assert calibration_error(binned(confidence, right)) < 0.01
    assert calibration_error(binned(np.zeros(0), np.zeros(0, bool))) == 0


def test_confusions_are_counted_the_most_frequent_first():
    targets, predicted = np.array([0, 0, 1, 2, 0, 1]), np.array([1, 1, 0, 2, 2, 1])
    found = [(a, b, places.tolist()) for a, b, places in confusions(targets, predicted)]
    assert found == [(0, 1, [0, 1]), (0, 2, [4]), (1, 0, [2])]
    assert confusions(targets, targets) == []


@st.composite
def scored(draw):
    """Positive and negative images, with scores of which many are equal."""
    count = draw(st.integers(2, 40))
    truth = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    truth[:2] = True, False
    steps = draw(st.sampled_from([1, 3, 1000]))
    scores = np.array(draw(st.lists(st.integers(0, steps), min_size=count, max_size=count)), np.float32) / steps
    return truth, scores


@settings(max_examples=100)
@given(scored())
def test_average_precision_and_roc_auc_are_scikit_learns(one):
    truth, scores = one
    assert average_precision(truth, scores) == pytest.approx(sklearn.average_precision_score(truth, scores), abs=1e-12)
    assert roc_auc(truth, scores) == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-12)


def test_precision_and_auc_of_one_kind_of_images_are_unknown():
    scores = np.array([0.2, 0.8])
    assert math.isnan(average_precision(np.array([False, False]), scores))
    assert average_precision(np.array([True, True]), scores) == 1
    assert math.isnan(roc_auc(np.array([True, True]), scores))
    assert math.isnan(roc_auc(np.array([False, False]), scores))
    assert math.isnan(average_precision(np.zeros(0, bool), np.zeros(0)))


def test_the_interval_of_auc_is_that_of_delong():
    rng = np.random.default_rng(0)
    truth, scores = np.arange(60) < 20, rng.normal(size=60).round(1)
    scores[truth] += 1
    pairs = np.sign(scores[truth][:, None] - scores[~truth]) / 2 + 0.5  # [positive, negative]: 1 in the right order, ½ if equal
    error = np.sqrt(pairs.mean(1).var(ddof=1) / 20 + pairs.mean(0).var(ddof=1) / 40)
    assert auc_interval(truth, scores) == pytest.approx((pairs.mean() - Z95 * error, pairs.mean() + Z95 * error))
    assert np.isnan(auc_interval(truth, truth.astype(float))).all()
    assert np.isnan(auc_interval(np.arange(9) == 0, rng.random(9))).all()


def test_the_interval_of_auc_holds_the_area_in_95_percent_of_samples():
    rng, held = np.random.default_rng(0), 0
    truth, area = np.arange(300) < 100, 0.7602499  # of normal distributions a standard deviation apart: Φ(1/√2)
    for _ in range(1000):
        low, high = auc_interval(truth, rng.normal(size=300) + truth)
        held += low < area < high
    assert 930 < held < 970


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    truth, chosen = rng.random((2, 12, 5)) > rng.random((2, 1, 5))
    assert f1(truth, chosen) == pytest.approx(sklearn.f1_score(truth, chosen, average=None, zero_division=0))
    assert f1(truth, chosen).mean() == pytest.approx(sklearn.f1_score(truth, chosen, average="macro", zero_division=0))
    assert f1(truth.ravel(), chosen.ravel()) == pytest.approx(sklearn.f1_score(truth, chosen, average="micro", zero_division=0))


@pytest.mark.parametrize("classes", [2, 5])
def test_measures_of_classes_are_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    targets, scores = rng.integers(0, classes, 80), rng.random((80, classes)).round(1)
    scores[np.arange(80), targets] += 0.3
    scores /= scores.sum(1, keepdims=True)
    predicted, truth = scores.argmax(1), targets[:, None] == np.arange(classes)
    parts = recalls(targets[:30], predicted[:30], classes) + recalls(targets[30:], predicted[30:], classes)
    assert balanced_accuracy(parts) == pytest.approx(sklearn.balanced_accuracy_score(targets, predicted))
    expected = sklearn.roc_auc_score(targets, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    assert macro_auc(truth, scores) == pytest.approx(expected)
    several = rng.random((80, classes))  # each class has a score of its own
    expected = sklearn.roc_auc_score(truth, several, average="macro")
    assert macro_auc(truth, several, exclusive=False) == pytest.approx(expected)
    missing = np.hstack([truth, np.zeros((80, 1), bool)]), np.hstack([scores, np.zeros((80, 1))])  # a class without images
    assert macro_auc(*missing) == pytest.approx(np.mean([roc_auc(truth[:, one], scores[:, one]) for one in range(classes)]))
    assert math.isnan(macro_auc(np.ones((3, 1), bool), np.ones((3, 1))))
    assert math.isnan(balanced_accuracy(np.zeros((3, 2))))


def test_a_printed_threshold_has_the_figures_beside_it():
    truth = np.array([False, False, True, True, False, True])
    scores = np.array([0.1, 0.99997, 0.99998, 0.99999, 0.2, 0.3], np.float32)
    page = _operating_points(truth, scores, "ill")
    for row in re.findall(r'number">(\S+?)<td class="number">(\S+?)%<td class="number">(\S+?)%', page):
        threshold, sensitivity, specificity = map(float, row)
        chosen = scores > threshold
        assert 100 * (chosen & truth).sum() / 3 == pytest.approx(sensitivity, abs=0.05)
        assert 100 * (~chosen & ~truth).sum() / 3 == pytest.approx(specificity, abs=0.05)
    assert page.count("at least") == 4


@given(scored(), st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]))
def test_operating_points_are_those_of_the_roc_curve(one, least):
    truth, scores = one
    threshold, sensitivity, specificity = operating_point(truth, scores, least)
    assert (sensitivity, specificity) == sensitivity_specificity(truth, scores > threshold)
    assert specificity >= least - 1e-9
    wrong, right, _ = sklearn.roc_curve(truth, scores, drop_intermediate=False)
    reachable = wrong <= 1 - least + 1e-9
    if least:  # with 0, any threshold below all scores would do
        assert sensitivity == pytest.approx(right[reachable].max())


def test_sensitivity_and_specificity_require_images():
    assert math.isnan(sensitivity_specificity(np.array([False]), np.array([True]))[0])
    assert math.isnan(sensitivity_specificity(np.array([True]), np.array([True]))[1])
