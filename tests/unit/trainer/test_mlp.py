from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from bigmodel.api.job import Recipe
from bigmodel.trainer.data import datasets
from bigmodel.trainer.data.order import split
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.recipes import mlp
from bigmodel.trainer.recipes.task import Task

SMALL: dict[str, Any] = {"hidden": [4, 3]}


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return datasets.load("dataset://diabetes", Path("/nowhere"))


@pytest.fixture(scope="module")
def task(data: datasets.Dataset) -> Task:
    return mlp.build(Recipe(name="mlp", parameters=SMALL, seed=4), data)


def test_the_features_are_scikit_learns_polynomials_in_its_order(data: datasets.Dataset):
    polynomials = PolynomialFeatures(degree=4, include_bias=False)
    features, degrees = mlp.polynomial_features(data.arrays["columns"])
    np.testing.assert_allclose(features, polynomials.fit_transform(data.arrays["columns"]), rtol=1e-12)
    np.testing.assert_array_equal(degrees, polynomials.powers_.sum(axis=1))
    assert features.shape == (442, mlp.FEATURES)


def test_by_default_it_is_the_network_of_the_mission(data: datasets.Dataset):
    model = mlp.build(Recipe(name="mlp"), data).model
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2]
    assert shapes == [(2000, 1000), (4000, 2000), (1, 4000)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_010_001


def test_standardisation_is_of_the_training_split_and_part_of_the_model(data: datasets.Dataset, task: Task):
    seen: list[torch.Tensor] = []
    task.model.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task.model.eval()(task.train.inputs)
    degrees = mlp.polynomial_features(data.arrays["columns"])[1]
    standardised = seen[0].numpy() / mlp.FEATURE_DECAY ** (degrees - 1)
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(standardised.std(axis=0), 1, atol=1e-3)
    assert float(task.model.target_mean) == pytest.approx(float(task.train.targets.mean()), rel=1e-5)
    assert float(task.loss(task.model.target_mean.expand(354, 1), task.train.targets).mean()) == pytest.approx(
        1, rel=1e-3
    )


def test_train_and_validation_are_all_the_patients_once(data: datasets.Dataset, task: Task):
    targets = torch.cat([task.train.targets, task.validation.targets]).flatten().sort().values
    assert targets.tolist() == sorted(data.arrays["progression"].tolist())
    assert (len(task.train), len(task.validation)) == (354, 88)


def test_the_baselines_are_those_of_scikit_learn(data: datasets.Dataset, task: Task):
    features, _ = mlp.polynomial_features(data.arrays["columns"])
    target = data.arrays["progression"]
    train, validation = split(442, mlp.VALIDATION_SHARE, seed=4)
    for name, columns in (("baseline_ridge_mse", features), ("baseline_linear_mse", data.arrays["columns"])):
        scaler = StandardScaler().fit(columns[train])
        ridge = RidgeCV(alphas=np.logspace(-2, 6, 33)).fit(scaler.transform(columns[train]), target[train])
        want = ((ridge.predict(scaler.transform(columns[validation])) - target[validation]) ** 2).mean()
        assert task.baselines()[name] == pytest.approx(want, rel=1e-6)
    want = ((target[validation] - target[train].mean()) ** 2).mean()
    assert task.baselines()["baseline_mean_mse"] == pytest.approx(want)


def test_metrics_are_in_the_unit_of_the_data(task: Task):
    outputs = task.validation.targets + 10
    means = {name: float(metric(outputs, task.validation.targets).mean()) for name, metric in task.metrics.items()}
    assert means == pytest.approx({"val_mse": 100, "val_mae": 10}, rel=1e-5)


def test_the_seed_decides_the_split(data: datasets.Dataset, task: Task):
    again = mlp.build(Recipe(name="mlp", parameters=SMALL, seed=4), data)
    other = mlp.build(Recipe(name="mlp", parameters=SMALL, seed=5), data)
    assert again.validation_digest == task.validation_digest != other.validation_digest


def test_random_inputs_have_the_size_of_real_ones(task: Task):
    random = task.random_inputs(500, torch.Generator().manual_seed(0))
    ratio = random.std(dim=0) / task.train.inputs.std(dim=0)
    assert 0.8 < float(ratio.min()) < float(ratio.max()) < 1.2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown parameter": ({"layers": 3}, "has layers; recipe mlp takes hidden, dropout"),
    "a width that is no number": ({"hidden": ["wide"]}, r"hidden is \['wide'\]"),
    "a width of 0": ({"hidden": [0]}, "hidden is"),
    "a width that is a boolean": ({"hidden": [True]}, "hidden is"),
    "hidden that is no list": ({"hidden": 5}, "hidden is 5"),
    "all units dropped": ({"dropout": 1}, "dropout is 1"),
    "dropout that is no number": ({"dropout": "half"}, "dropout is 'half'"),
}


@pytest.mark.parametrize(("parameters", "message"), REFUSED.values(), ids=REFUSED)
def test_parameters_that_make_no_sense_are_refused(data: datasets.Dataset, parameters: dict[str, Any], message: str):
    with pytest.raises(InvalidRecipe, match=rf"spec\.recipe\.parameters.*{message}"):
        mlp.build(Recipe(name="mlp", parameters=parameters), data)
