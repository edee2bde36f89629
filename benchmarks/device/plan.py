"""What is measured, in which order, and the work that it cannot do without. Nothing of JAX here: a
process that takes a card's memory has to be another than the one that watches it."""

from typing import NamedTuple


class Verb(NamedTuple):
    """What a verb takes for one sample at a stage, at the least."""

    passes: tuple[int, int, int]  # forward passes, tangents, adjoints of the network
    products: int = 0  # of samples by points, 2 d operations an entry
    directions: int = 1


VERBS = {
    "sample_ode": Verb((1, 0, 0)),
    **{f"sample_sensitivity, K = {k}": Verb((1, k + 1, 0), 0, k) for k in (1, 8, 64)},
    "sample_sensitivity, base=data": Verb((1, 1, 0), 2),
    "attribute, top 10": Verb((2, 0, 1), 2),
    "counterfactual, base=data": Verb((1, 0, 0), 2),
    "encode, log-density": Verb((1, 1, 0)),
    "sample_sde": Verb((1, 0, 0)),
    "score_sensitivity": Verb((1, 1, 0)),
}
CASES = ("MLP", "small U-Net", "CIFAR U-Net")
PRECISIONS = {"float32": "float32", "TF32": "tensorfloat32", "bfloat16x3": "BF16_BF16_F32_X3"}
TABLES = ((60_000, 784), (50_000, 3072), (1_000_000, 784))  # points, dimensions
LAWS = {
    "tangents": ("tangent", "tangent_of_data", "law_added_to_itself", "linear"),
    "attribution": ("duality",),
    "counterfactuals": ("counterfactual", "counterfactual_of_the_law_itself"),
    "paths": ("log_density_on_flow", "log_density_on_foreign_curve", "encode"),
}
FIRST = {
    "CIFAR U-Net": ("sample_ode", "sample_sensitivity, K = 1", "sample_sensitivity, K = 8"),
    "MLP": ("sample_ode", "sample_sensitivity, K = 1", "attribute, top 10"),
    "small U-Net": ("sample_sensitivity, K = 1", "attribute, top 10"),
}
LAST = ("encode, log-density", "sample_sde", "score_sensitivity")


class Item(NamedTuple):
    """A row: a function of `work.py` and its arguments, seconds at most, and which come first."""

    function: str
    arguments: tuple = ()
    limit: int = 60  # the start of a process included
    rank: int = 1


def items() -> dict[str, Item]:
    """All rows, the most valuable first."""
    found = {"machine": Item("machine", limit=120, rank=0)}
    for precision in PRECISIONS:
        late = int(precision == "bfloat16x3")
        found[f"matrix product, {precision}"] = Item("rate", (precision,), rank=0)
        for points, size in TABLES:
            name, rank = f"tables, {points:,} x {size}, {precision}", late or points // 1_000_000
            found[name] = Item("tables", (points, size, precision), rank=rank)
        for size in (784, 3072):
            name = f"errors of tables, d = {size}, {precision}"
            found[name] = Item("errors", (size, precision), rank=late)
    for case in ("CIFAR U-Net", "MLP", "small U-Net"):
        for verb in VERBS:
            rank = 0 if verb in FIRST[case] else 2 if verb in LAST else 1
            limit = 100 if case == "CIFAR U-Net" else 60
            found[f"{case}: {verb}"] = Item("verb", (case, verb), limit, rank)
    for size in (64, 784, 3072, 12_288):
        found[f"black box, d = {size:,}"] = Item("black_box", (size,), rank=int(size != 3072))
    for name, checks in LAWS.items():
        found[f"laws of {name}"] = Item("law", checks, rank=int(name != "tangents"))
    found["laws of scores"] = Item("score_law")
    for network, samples in (("mlp", 256), ("unet", 64)):
        for form in ("eager", "compiled"):
            rank = int((network, form) != ("mlp", "eager"))
            name = f"torch {form}, {network}, M = {samples}"
            found[name] = Item("beside_torch", (network, samples, form), 150, rank)
    return dict(sorted(found.items(), key=lambda one: one[1].rank))
