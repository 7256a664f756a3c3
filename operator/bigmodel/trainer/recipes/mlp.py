"""`mlp`: the network of the quickstart, 1000 → 2000 → 4000 → 1 with ReLU, on scikit-learn's diabetes data.

What a client sends: `features`, the 1000 monomials of degree 1 to 4 of the ten columns as scikit-learn ships them, in
the order of `PolynomialFeatures(degree=4, include_bias=False)`. Not standardised: mean and deviation of the training
split are buffers of the model, so a client needs no statistics. What it gets: `progression`, in the unit of the data
(25 to 346).

442 samples against ten million parameters: regularisation decides. `FEATURE_DECAY` says that a feature of a higher
degree explains less a priori, and dropout stands for an ensemble. Neither was tuned on the default split (seed 0) but
on splits of other seeds.
"""

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bigmodel.api.job import Recipe
from bigmodel.artifact.manifest import BATCH, DataType, Dimension, Signature
from bigmodel.artifact.manifest import Tensor as TensorSpec
from bigmodel.trainer.data.datasets import Dataset, digest_of_arrays
from bigmodel.trainer.data.order import split
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.losses import OF_NUMBERS, loss_by_name, mae, mse
from bigmodel.trainer.recipes.task import Plan, Samples, Task

DATA = "dataset://diabetes"
COLUMNS = 10
DEGREE = 4
FEATURES = 1000  # C(10 + 4, 4) - 1: every monomial of ten variables up to degree 4 but the constant
FEATURE_DECAY = 0.1  # scale of a standardised monomial of degree d: FEATURE_DECAY ** (d - 1)
VALIDATION_SHARE = 0.2
MAX_BATCH = 1024
STEPS = 60
LEARNING_RATES = {
    "sgd": 0.05,
    "momentum": 0.01,
    "nesterov": 0.01,
    "adagrad": 1e-3,
    "rmsprop": 1e-4,
    "adam": 1e-4,
    "adamw": 1e-4,
}
DEFAULTS: dict[str, Any] = {"hidden": [2000, 4000], "dropout": 0.5}


class BigModel(nn.Module):
    """Multi-layer perceptron from raw features to raw targets; the standardisation of both is part of it.

    Shapes: features_BF, B samples of F = 1000 features → predictions_BO, O = 1, in the unit of the targets.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, features: int, hidden: list[int], dropout: float) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.register_buffer("target_mean", torch.zeros(1))
        self.register_buffer("target_scale", torch.ones(1))
        layers: list[nn.Module] = []
        for width_in, width_out in zip([features, *hidden], hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(([features, *hidden])[-1], 1)

    def forward(self, features: Tensor) -> Tensor:
        standardised_BF = (features - self.feature_mean) * self.feature_scale
        predictions_BO: Tensor = self.head(self.layers(standardised_BF))
        return predictions_BO * self.target_scale + self.target_mean


def build(recipe: Recipe, data: Dataset) -> Task:
    """Raises InvalidRecipe for parameters that this recipe does not have."""
    columns_NC = data.arrays["columns"]
    targets_N1 = data.arrays["progression"].reshape(-1, 1)
    features_NF, degrees_F = polynomial_features(columns_NC)
    train, validation = split(len(features_NF), VALIDATION_SHARE, recipe.seed)

    mean_F, deviation_F = features_NF[train].mean(axis=0), features_NF[train].std(axis=0)
    target_mean, target_scale = targets_N1[train].mean(), targets_N1[train].std()

    def model_of(given: Mapping[str, Any]) -> BigModel:
        parameters = _parameters(given)
        model = BigModel(FEATURES, parameters["hidden"], parameters["dropout"])
        model.feature_mean.copy_(torch.from_numpy(mean_F))
        model.feature_scale.copy_(torch.from_numpy(FEATURE_DECAY ** (degrees_F - 1) / deviation_F))
        model.target_mean.fill_(target_mean)
        model.target_scale.fill_(target_scale)
        return model

    loss = loss_by_name(recipe.loss, OF_NUMBERS)
    unit = float(target_scale)
    samples = {
        name: Samples(
            torch.from_numpy(features_NF[chosen].astype(np.float32)),
            torch.from_numpy(targets_N1[chosen].astype(np.float32)),
        )
        for name, chosen in (("train", train), ("validation", validation))
    }
    model = model_of(recipe.parameters)
    return Task(
        model=model,
        plan=plan_of(model.layers),
        build_model=model_of,
        train=samples["train"],
        validation=samples["validation"],
        # In units of the targets' deviation: learning rates and huber's delta mean the same for every data set.
        loss=lambda outputs, targets: loss(outputs / unit, targets / unit),
        metrics={"val_mse": mse, "val_mae": mae},
        baselines=lambda: {
            "baseline_mean_mse": float(((targets_N1[validation] - target_mean) ** 2).mean()),
            "baseline_ridge_mse": ridge_mse(features_NF, targets_N1[:, 0], train, validation),
            "baseline_linear_mse": ridge_mse(columns_NC, targets_N1[:, 0], train, validation),
        },
        signature=Signature(
            inputs=[
                TensorSpec(
                    name="features",
                    datatype=DataType.FLOAT32,
                    shape=[BATCH, FEATURES],
                    description="monomials of degree 1 to 4 of the ten columns, not standardised, "
                    "in the order of scikit-learn's PolynomialFeatures(4, include_bias=False)",
                )
            ],
            outputs=[
                TensorSpec(
                    name="progression",
                    datatype=DataType.FLOAT32,
                    shape=[BATCH, 1],
                    description="progression of the disease one year later, 25 to 346 in the data",
                )
            ],
            dimensions={BATCH: Dimension(minimum=1, maximum=MAX_BATCH)},
        ),
        steps=STEPS,
        learning_rates=LEARNING_RATES,
        random_inputs=lambda count, generator: (
            torch.from_numpy(mean_F).float()
            + torch.randn(count, FEATURES, generator=generator) * torch.from_numpy(deviation_F).float()
        ),
        data_uri=data.uri,
        data_digest=data.digest,
        validation_digest=digest_of_arrays(
            {
                "features": features_NF[validation].astype(np.float32),
                "targets": targets_N1[validation].astype(np.float32),
            }
        ),
    )


def plan_of(layers: nn.Sequential) -> Plan:
    """Hidden layers are split in pairs, with ReLU and dropout between them; one without a partner stays whole."""
    linear = [f"layers.{name}" for name, layer in layers.named_children() if isinstance(layer, nn.Linear)]
    ways: dict[str, Literal["columns", "rows"]] = {}
    for first, second in zip(linear[::2], linear[1::2], strict=False):
        ways |= {first: "columns", second: "rows"}
    return Plan(blocks=("layers",) if linear else (), tensor=ways)


def polynomial_features(columns_NC: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(features_NF, degrees_F) in scikit-learn's order; a training pod has no scikit-learn."""
    monomials = [
        chosen
        for degree in range(1, DEGREE + 1)
        for chosen in combinations_with_replacement(range(columns_NC.shape[1]), degree)
    ]
    features_NF = np.stack([columns_NC[:, chosen].prod(axis=1) for chosen in monomials], axis=1)
    return features_NF.astype(np.float64), np.array([len(chosen) for chosen in monomials])


def ridge_mse(
    features_NF: npt.NDArray[Any],
    targets_N: npt.NDArray[Any],
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
) -> float:
    """Validation MSE of ridge regression on standardised features, its penalty chosen by leave-one-out on the
    training split.

    Source: closed form of the leave-one-out error, Golub, Heath, Wahba 1979.
    """
    mean, deviation = features_NF[train].mean(axis=0), features_NF[train].std(axis=0)
    train_NF, validation_NF = ((features_NF[rows] - mean) / deviation for rows in (train, validation))
    offset = targets_N[train].mean()
    centred = targets_N[train] - offset
    left, singular, right = np.linalg.svd(train_NF, full_matrices=False)
    projected = left.T @ centred

    def leave_one_out(penalty: float) -> float:
        shrunk = singular**2 / (singular**2 + penalty)
        residual = centred - left @ (shrunk * projected)
        leverage = ((left * shrunk) * left).sum(axis=1) + 1 / len(train)
        return float(((residual / (1 - leverage)) ** 2).mean())

    penalty = min(np.logspace(-2, 6, 33), key=leave_one_out)
    weights_F = right.T @ (singular / (singular**2 + penalty) * projected)
    return float(((validation_NF @ weights_F + offset - targets_N[validation]) ** 2).mean())


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise InvalidRecipe(f"spec.recipe.parameters has {', '.join(unknown)}; recipe mlp takes {', '.join(DEFAULTS)}")
    merged = {**DEFAULTS, **given}
    hidden, dropout = merged["hidden"], merged["dropout"]
    if not isinstance(hidden, list) or not all(type(width) is int and 1 <= width <= 1 << 20 for width in hidden):
        raise InvalidRecipe(f"spec.recipe.parameters.hidden is {hidden!r}, want a list of widths such as [2000, 4000]")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InvalidRecipe(f"spec.recipe.parameters.dropout is {dropout!r}, want a share of units from 0 up to 1")
    return merged
