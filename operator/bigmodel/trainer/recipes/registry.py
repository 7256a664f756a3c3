"""The recipes by the name that `spec.recipe.name` calls them: one module each."""

from typing import Protocol

from bigmodel.api.job import Recipe
from bigmodel.trainer.data.datasets import Dataset
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.recipes import mlp
from bigmodel.trainer.recipes.task import Task


class RecipeModule(Protocol):
    """What a module of this package has."""

    DATA: str  # URI of its own data set, for a spec that names none

    def build(self, recipe: Recipe, data: Dataset) -> Task:
        """Draws the initial weights from torch's generator, which the caller has seeded, and nothing else.

        Raises InvalidRecipe for parameters, losses or data that it cannot use.
        """


RECIPES: dict[str, RecipeModule] = {"mlp": mlp}


def known(recipe: Recipe | None) -> RecipeModule:
    """Raises InvalidRecipe for a name of another version."""
    if recipe is None or recipe.name not in RECIPES:
        raise InvalidRecipe(
            f"spec.recipe.name is {recipe.name if recipe else None!r}, this trainer has {', '.join(RECIPES)}"
        )
    return RECIPES[recipe.name]
