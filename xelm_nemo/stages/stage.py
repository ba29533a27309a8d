"""What a stage is: artifacts with recipes, and a function that makes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.errors import ArtifactError
from xelm_nemo.stages.run import Run


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; stages know each other through the folders of `Run` alone.

    Attributes:
        name: the verb.
        recipes: the artifacts that it makes, and what each is made from.
        make: makes those that are missing or stale.
        finish: shows or records what there is, whether made now or earlier.
    """

    name: str
    recipes: Callable[[Run], Mapping[Path, Recipe]]
    make: Callable[[Run], None]
    finish: Callable[[Run], None] = lambda run: None

    def is_current(self, run: Run) -> bool:
        """Whether everything that the stage makes is whole and up to date."""
        try:
            return all(artifacts.is_current(folder, recipe) for folder, recipe in self.recipes(run).items())
        except ArtifactError:  # an input is missing: an earlier stage has not run
            return False


@dataclass(frozen=True)
class Product:
    """One artifact of a run that is made in one step.

    Attributes:
        folder: where it is.
        recipe: what it is made from; asked for when its inputs exist.
        fill: writes it into an empty folder.
        resumable: whether `fill` goes on from what an earlier call by the same recipe left in the folder.
    """

    folder: Callable[[Run], Path]
    recipe: Callable[[Run], Recipe]
    fill: Callable[[Run, Path], None]
    resumable: bool = False

    def make(self, run: Run) -> None:
        """Make it unless it is current."""
        folder, recipe = self.folder(run), self.recipe(run)
        if not artifacts.is_current(folder, recipe):
            with artifacts.build(folder, recipe, resumable=self.resumable) as part:
                self.fill(run, part)


def stage_of(name: str, *products: Product, finish: Callable[[Run], None] = lambda run: None) -> Stage:
    """A stage that makes its products one after the other; each may be made from those before it."""

    def recipes(run: Run) -> Mapping[Path, Recipe]:
        return {product.folder(run): product.recipe(run) for product in products}

    def make(run: Run) -> None:
        for product in products:
            product.make(run)

    return Stage(name, recipes, make, finish)
