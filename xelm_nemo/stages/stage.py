"""What a stage is: artifacts with recipes, and a function that makes them."""

from collections.abc import Callable, Mapping, Sequence
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
        products: where processes on several machines can share the work, its artifacts.
    """

    name: str
    recipes: Callable[[Run], Mapping[Path, Recipe]]
    make: Callable[[Run], None]
    finish: Callable[[Run], None] = lambda run: None
    products: Sequence["Product"] = ()

    @property
    def can_be_shared(self) -> bool:
        """Whether `begin` and `share` do what `make` need not do then."""
        return any(product.share for product in self.products)

    def begin(self, run: Run) -> None:
        """Make what cannot be shared, and the folders for what can."""
        for product in self.products:
            product.begin(run)

    def share(self, run: Run, part: int, parts: int) -> None:
        """Do one of so many parts of the work, after `begin`; `make` then finds it done."""
        for product in self.products:
            product.do_share(run, slice(part, None, parts))

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
        share: does some of what a resumable `fill` has to do, such as every eighth file.
    """

    folder: Callable[[Run], Path]
    recipe: Callable[[Run], Recipe]
    fill: Callable[[Run, Path], None]
    resumable: bool = False
    share: Callable[[Run, Path, slice], None] | None = None

    def make(self, run: Run) -> None:
        """Make it unless it is current."""
        folder, recipe = self.folder(run), self.recipe(run)
        if not artifacts.is_current(folder, recipe):
            with artifacts.build(folder, recipe, resumable=self.resumable) as part:
                self.fill(run, part)

    def begin(self, run: Run) -> None:
        """Make its folder where its work can be shared, and else the whole of it; unless it is current."""
        if self.share is None:
            self.make(run)
        elif not artifacts.is_current(self.folder(run), self.recipe(run)):
            artifacts.begin(self.folder(run), self.recipe(run))

    def do_share(self, run: Run, some: slice) -> None:
        """Do a part of its work, unless it is current or cannot be shared."""
        folder, recipe = self.folder(run), self.recipe(run)
        if self.share is not None and not artifacts.is_current(folder, recipe):
            self.share(run, artifacts.begun(folder, recipe), some)


def stage_of(name: str, *products: Product, finish: Callable[[Run], None] = lambda run: None) -> Stage:
    """A stage that makes its products one after the other; each may be made from those before it."""

    def recipes(run: Run) -> Mapping[Path, Recipe]:
        return {product.folder(run): product.recipe(run) for product in products}

    def make(run: Run) -> None:
        for product in products:
            product.make(run)

    return Stage(name, recipes, make, finish, products)
