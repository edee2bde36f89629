"""What numbers are, in annotations."""

from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float | int
