"""Fixed-width vectors inside numba kernels, and one atomic counter.

Numba's arrays carry no aliasing information: LLVM does not vectorise a rasterizer's short inner loops by itself.
These types map to LLVM vectors (`<16 x float>`), which LLVM splits over whatever registers the machine has (AVX-512,
AVX2, SSE, NEON); operators work lane by lane and accept scalars. Multiply-adds may be contracted; nothing else is
reordered, so that results depend on the machine but never on the number of threads.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 8  # a vector has a multiple of this many lanes
_CONTRACT = ("contract",)


def _in_kernels(definition: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic as kernels call it: without the typing context, and with a result."""
    return intrinsic(definition)


class VectorType(types.Type):
    """Numba type of a vector of `lanes` scalars (float32, float64, int32 or boolean)."""

    def __init__(self, scalar: types.Type, lanes: int) -> None:
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"vector({scalar}, {lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        scalar = ir.IntType(1) if kind.scalar == types.boolean else manager.lookup(kind.scalar).get_value_type()
        super().__init__(manager, kind, ir.VectorType(scalar, kind.lanes))


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    index = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, index)
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    )


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _widen(context: Any, builder: Any, value: Any, kind: types.Type, vector: VectorType) -> Any:
    """`value` as a vector: itself, or a scalar in every lane."""
    if isinstance(kind, VectorType):
        return value
    return _splat(builder, context.cast(builder, value, kind, vector.scalar), vector.lanes)


def _elementwise(emit: Callable, gives_mask: bool = False) -> Callable:
    @_in_kernels
    def operation(_typing: Any, left: Any, right: Any) -> Any:
        vector = left if isinstance(left, VectorType) else right
        result = VectorType(types.boolean, vector.lanes) if gives_mask else vector

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pairs = zip(args, signature.args, strict=True)
            return emit(builder, vector, *[_widen(context, builder, value, kind, vector) for value, kind in pairs])

        return result(left, right), codegen

    return operation


def _compare(relation: str) -> Callable:
    def emit(builder: Any, vector: VectorType, left: Any, right: Any) -> Any:
        if isinstance(vector.scalar, types.Float):
            return builder.fcmp_ordered(relation, left, right)
        return builder.icmp_signed(relation, left, right)

    return emit


def _minimum(builder: Any, _vector: VectorType, left: Any, right: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", left, right), left, right)


minimum = _elementwise(_minimum)
_OPERATORS = {
    operator.add: _elementwise(lambda builder, _vector, a, b: builder.fadd(a, b, flags=_CONTRACT)),
    operator.sub: _elementwise(lambda builder, _vector, a, b: builder.fsub(a, b, flags=_CONTRACT)),
    operator.mul: _elementwise(lambda builder, _vector, a, b: builder.fmul(a, b, flags=_CONTRACT)),
    operator.truediv: _elementwise(lambda builder, _vector, a, b: builder.fdiv(a, b, flags=_CONTRACT)),
    operator.and_: _elementwise(lambda builder, _vector, a, b: builder.and_(a, b), gives_mask=True),
    operator.ge: _elementwise(_compare(">="), gives_mask=True),
    operator.gt: _elementwise(_compare(">"), gives_mask=True),
    operator.le: _elementwise(_compare("<="), gives_mask=True),
}


def _register(symbol: Callable, operation: Callable) -> None:
    # lambdas, as numba wants the chooser's and the implementation's signatures equal, annotations included
    overload(symbol)(
        lambda left, right: (
            (lambda left, right: operation(left, right))
            if isinstance(left, VectorType) or isinstance(right, VectorType)
            else None
        )
    )


for _symbol, _operation in _OPERATORS.items():
    _register(_symbol, _operation)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: ir.VectorType) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@_in_kernels
def load(_typing: Any, array: Any, index: Any, blocks: Any) -> Any:
    """Vector of `LANES * len(blocks)` consecutive values of the flat `array`, from `index`; `blocks` is a tuple."""
    result = VectorType(array.dtype, LANES * blocks.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], context.get_value_type(result))
        return builder.load(address, align=context.get_abi_sizeof(context.get_value_type(array.dtype)))

    return result(array, index, blocks), codegen


@_in_kernels
def store(_typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write `vector` to consecutive places of the flat `array`, from `index`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], args[2].type)
        builder.store(args[2], address, align=context.get_abi_sizeof(context.get_value_type(array.dtype)))
        return context.get_dummy_value()

    return types.void(array, index, vector), codegen


@_in_kernels
def fill(_typing: Any, value: Any, like: Any) -> Any:
    """The scalar `value` in every lane of a vector of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _widen(context, builder, args[0], signature.args[0], like)

    return like(value, like), codegen


@_in_kernels
def select(_typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Lane by lane `yes` where `mask` else `no`; one of the two may be a scalar."""
    vector = yes if isinstance(yes, VectorType) else no

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        choices = [_widen(context, builder, args[i], signature.args[i], vector) for i in (1, 2)]
        return builder.select(args[0], *choices)

    return vector(mask, yes, no), codegen


@_in_kernels
def without(_typing: Any, mask: Any, removed: Any) -> Any:
    """Lanes of `mask` that are not in `removed`."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.and_(args[0], builder.not_(args[1]))

    return mask(mask, removed), codegen


def _bits(builder: Any, mask: Any) -> Any:
    return builder.bitcast(mask, ir.IntType(mask.type.count))


@_in_kernels
def is_any(_typing: Any, mask: Any) -> Any:
    """Whether any lane of `mask` is set."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        number = _bits(builder, args[0])
        return builder.icmp_unsigned("!=", number, ir.Constant(number.type, 0))

    return types.boolean(mask), codegen


@_in_kernels
def count_bits(_typing: Any, mask: Any) -> Any:
    """Number of lanes of `mask` that are set."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.zext(builder.ctpop(_bits(builder, args[0])), ir.IntType(64))

    return types.int64(mask), codegen


@_in_kernels
def totals(_typing: Any, array: Any, index: Any, blocks: Any) -> Any:
    """One vector: in lane k the sum over the lanes of the k-th of 16 vectors that follow each other from `index`.

    The sixteen sums take 15 additions and 30 shuffles; one by one they would take 64 and 64. `blocks` as in `load`, of
    two.
    """
    lanes = LANES * blocks.count
    result = VectorType(array.dtype, lanes)
    pairs = [4 * group + lane for group in range(4) for lane in (0, 2, lanes, lanes + 2)]  # within four lanes
    fours = [group + lane for group in (0, 8, lanes, lanes + 8) for lane in range(4)]  # fours of lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, integer = context.get_value_type(result), ir.VectorType(ir.IntType(32), lanes)
        rows = []
        for row in range(lanes):
            start = builder.add(args[1], ir.Constant(args[1].type, row * lanes))
            address = _address(context, builder, signature.args[0], args[0], start, vector)
            rows.append(builder.load(address, align=context.get_abi_sizeof(context.get_value_type(array.dtype))))
        for places, step in ((pairs, 1), (pairs, 1), (fours, 4), (fours, 4)):
            masks = [ir.Constant(integer, [place + offset for place in places]) for offset in (0, step)]
            rows = [
                builder.fadd(*[builder.shuffle_vector(rows[i], rows[i + 1], mask) for mask in masks])
                for i in range(0, len(rows), 2)
            ]
        return rows[0]

    return result(array, index, blocks), codegen


def _exp_float32(builder: Any, x: Any) -> Any:
    """exp(x) for -87 <= x <= 0 to a few units in the last place: 2^n exp(r), |r| <= ln2/2 (Cody and Waite)."""
    vector = x.type
    integers = ir.VectorType(ir.IntType(32), vector.count)

    def multiply_add(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)

    scaled = multiply_add(x, _constant(vector, 1.4426950408889634), _constant(vector, -0.5))
    n = builder.fptosi(scaled, integers)  # truncation rounds to nearest, as `scaled` is negative
    floating = builder.sitofp(n, vector)
    rest = multiply_add(floating, _constant(vector, -0.693359375), x)
    rest = multiply_add(floating, _constant(vector, 2.12194440e-4), rest)
    power = _constant(vector, 1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        power = multiply_add(power, rest, _constant(vector, coefficient))
    exponent = builder.shl(builder.add(n, _constant(integers, 127)), _constant(integers, 23))
    return builder.fmul(power, builder.bitcast(exponent, vector))


@_in_kernels
def exp_negative(_typing: Any, vector: Any) -> Any:
    """exp(-x) for x >= 0, lane by lane; arguments are cut to [0, 87], where float32 ends."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        zero, limit = _constant(args[0].type, 0.0), _constant(args[0].type, 87.0)
        x = builder.select(builder.fcmp_ordered("<", args[0], limit), args[0], limit)
        x = builder.select(builder.fcmp_ordered(">", x, zero), x, zero)
        x = builder.fsub(zero, x)
        if vector.scalar == types.float32:
            return _exp_float32(builder, x)
        name = f"llvm.exp.v{vector.lanes}f{vector.scalar.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name)
        return builder.call(function, [x])

    return vector(vector), codegen


@_in_kernels
def take_ticket(_typing: Any, counter: Any) -> Any:
    """Atomically add 1 to the first element of an int64 array and return what it was: threads share a queue by it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen
