"""Operations of a traced program."""

import math

from jax.extend.core import jaxprs_in_params


def product_flops(jaxpr) -> int:
    """Operations of all matrix products and convolutions, padding counted as data."""
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * out.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * kernel.size // channels
        total += sum(map(product_flops, jaxprs_in_params(equation.params)))
    return total
