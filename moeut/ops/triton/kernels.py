"""Triton kernels of the expert operations: products of routed rows, weight gradients, row sums.

Shapes: S slots, E experts; R sorted rows, of which ``offsets[e]:offsets[e + 1]`` belong to expert e
and those behind ``offsets[E]`` to no expert. A *tile* is up to ``TILE_ROWS`` sorted rows of one
expert, computed ``BLOCK_ROWS`` at a time; ``tiles`` (2, max_tiles) holds the expert and the first
row of each. The expert is E for rows without one, which are written as zeros, and -1 behind the
last tile.

All tensors are contiguous and all widths are compile-time constants: a width of 412 then still
gives vector loads, which it does not as an argument. Addresses are computed in 64 bits where rows
enter. Rows behind the end of a tile repeat a row that exists and are not stored, so that loads need
no row mask; where rows are summed they are masked in both factors, as 0 times NaN is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "num_slots",
        "num_experts",
        "max_tiles",
        "first_column_tile",
        "num_column_tiles",
    ]
)
def row_product_kernel(
    input_ptr,
    weight,
    output_ptr,
    gated_ptr,
    partner_ptr,
    gate_ptr,
    gate_gradient_ptr,
    order_ptr,
    offsets_ptr,
    tiles_ptr,
    num_slots,
    num_experts,
    max_tiles,
    first_column_tile,
    num_column_tiles,
    WIDTH_IN: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SLOTS_PER_INPUT: tl.constexpr,
    SLOTS_PER_PARTNER: tl.constexpr,
    BY_SLOT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    STORES_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPAN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """Multiply each routed row by its expert's matrix: p[r] = input[r] @ weight[expert[r]].

    Input and partner rows are gathered (slot // SLOTS_PER_*) or, where that is 0, in sorted order.
    The weight is (E, WIDTH_IN, WIDTH_OUT), or (E, WIDTH_OUT, WIDTH_IN) where TRANSPOSED; it is a
    pointer or, where DESCRIPTOR, a tensor descriptor, whose blocks the tensor-memory accelerator
    copies. Output rows are stored by slot or in sorted order. The gate is 1 unless HAS_GATE.
    EPILOGUE:

    * "linear": gate · p
    * "relu": relu(p)
    * "gate_gradient": gate · p, and gate_gradient = <p, partner>
    * "relu_gradient": gate · p where partner > 0, gated = gate · partner, and gate_gradient

    Gate gradients (column tiles, S) are partial sums, one for each tile of columns. An *item* is
    BLOCK_ROWS rows of a tile in SPAN tiles of columns; input rows that fit in BLOCK_IN are loaded
    once for all of them. Each program computes one item. Where PERSISTENT, there are only as many
    programs as the GPU holds at once, and each goes on with the item num_programs further, until
    none is left.
    """
    # Items are counted along the columns first, so that neighbours read the same rows.
    num_spans = tl.cdiv(num_column_tiles, SPAN)
    if PERSISTENT:
        num_items = max_tiles * (TILE_ROWS // BLOCK_ROWS) * num_spans
        for item in tl.range(tl.program_id(0), num_items, tl.num_programs(0)):
            _row_product_tile(
                item // num_spans, item % num_spans * SPAN, num_column_tiles,
                input_ptr, weight, output_ptr, gated_ptr, partner_ptr, gate_ptr,
                gate_gradient_ptr, order_ptr, offsets_ptr, tiles_ptr,
                num_slots, num_experts, max_tiles, first_column_tile,
                WIDTH_IN, WIDTH_OUT, OUTPUT_STRIDE, TRANSPOSED, SLOTS_PER_INPUT, SLOTS_PER_PARTNER,
                BY_SLOT, EPILOGUE, HAS_GATE, STORES_OUTPUT, PRECISION,
                TILE_ROWS, BLOCK_ROWS, BLOCK_OUT, BLOCK_IN, SPAN, DESCRIPTOR,
            )  # fmt: skip
    else:
        item = tl.program_id(0)
        _row_product_tile(
            item // num_spans, item % num_spans * SPAN, num_column_tiles,
            input_ptr, weight, output_ptr, gated_ptr, partner_ptr, gate_ptr,
            gate_gradient_ptr, order_ptr, offsets_ptr, tiles_ptr,
            num_slots, num_experts, max_tiles, first_column_tile,
            WIDTH_IN, WIDTH_OUT, OUTPUT_STRIDE, TRANSPOSED, SLOTS_PER_INPUT, SLOTS_PER_PARTNER,
            BY_SLOT, EPILOGUE, HAS_GATE, STORES_OUTPUT, PRECISION,
            TILE_ROWS, BLOCK_ROWS, BLOCK_OUT, BLOCK_IN, SPAN, DESCRIPTOR,
        )  # fmt: skip


@triton.jit
def _row_product_tile(
    block,
    first_of_span,
    num_column_tiles,
    input_ptr,
    weight,
    output_ptr,
    gated_ptr,
    partner_ptr,
    gate_ptr,
    gate_gradient_ptr,
    order_ptr,
    offsets_ptr,
    tiles_ptr,
    num_slots,
    num_experts,
    max_tiles,
    first_column_tile,
    WIDTH_IN: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SLOTS_PER_INPUT: tl.constexpr,
    SLOTS_PER_PARTNER: tl.constexpr,
    BY_SLOT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    STORES_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPAN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Compute one block of rows, in SPAN tiles of columns; see ``row_product_kernel``.

    ``block`` counts blocks of rows over all tiles; ``first_of_span`` is the first tile of columns.
    """
    tile = block // (TILE_ROWS // BLOCK_ROWS)
    expert = tl.load(tiles_ptr + tile)
    first_row = (
        tl.load(tiles_ptr + max_tiles + tile) + block % (TILE_ROWS // BLOCK_ROWS) * BLOCK_ROWS
    )
    # Rows without an expert (E) end with the slots; behind the last tile (-1) there is nothing.
    has_end = (expert >= 0) & (expert < num_experts)
    end_row = tl.load(offsets_ptr + expert + 1, mask=has_end, other=num_slots)
    if (expert >= 0) & (first_row < end_row):
        rows = first_row + tl.arange(0, BLOCK_ROWS)  # (BLOCK_ROWS,) sorted rows
        in_tile = rows < end_row
        rows = tl.where(in_tile, rows, first_row)  # a row that exists: loads need no mask
        slots = tl.load(order_ptr + rows)
        output_rows = slots if BY_SLOT else rows
        # Output columns are counted from the first that this launch computes.
        first_output_column = first_of_span * BLOCK_OUT
        first_offsets = output_rows[:, None] * OUTPUT_STRIDE + (
            first_output_column + tl.arange(0, BLOCK_OUT)[None, :]
        )
        has_gate_gradient: tl.constexpr = (
            EPILOGUE == "relu_gradient" and HAS_GATE
        ) or EPILOGUE == "gate_gradient"
        count = 1 if SPAN == 1 else tl.minimum(SPAN, num_column_tiles - first_of_span)

        if expert == num_experts:
            for step in tl.range(0, count):
                column_tile = first_column_tile + first_of_span + step
                columns = column_tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
                stored = in_tile[:, None] & (columns < WIDTH_OUT)[None, :]
                offsets = first_offsets + step * BLOCK_OUT
                zeros = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=output_ptr.dtype.element_ty)
                if STORES_OUTPUT:
                    tl.store(output_ptr + offsets, zeros, mask=stored)
                if EPILOGUE == "relu_gradient" and HAS_GATE:
                    tl.store(gated_ptr + offsets, zeros, mask=stored)
                if has_gate_gradient:
                    gradient_ptrs = gate_gradient_ptr + column_tile.to(tl.int64) * num_slots + slots
                    tl.store(gradient_ptrs, tl.zeros((BLOCK_ROWS,), dtype=tl.float32), mask=in_tile)
        else:
            is_narrow: tl.constexpr = WIDTH_IN <= BLOCK_IN
            input_rows = slots // SLOTS_PER_INPUT if SLOTS_PER_INPUT > 0 else rows
            inner = tl.arange(0, BLOCK_IN)
            # (BLOCK_ROWS, BLOCK_IN)
            first_input_ptrs = input_ptr + input_rows[:, None] * WIDTH_IN + inner[None, :]
            if is_narrow:
                if WIDTH_IN == BLOCK_IN:
                    values = tl.load(first_input_ptrs)
                else:
                    values = tl.load(first_input_ptrs, mask=(inner < WIDTH_IN)[None, :], other=0.0)
            for step in tl.range(0, count):
                column_tile = first_column_tile + first_of_span + step
                columns = column_tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
                in_width = columns < WIDTH_OUT
                stored = in_tile[:, None] & in_width[None, :]
                offsets = first_offsets + step * BLOCK_OUT
                if not DESCRIPTOR:  # (BLOCK_IN, BLOCK_OUT), whichever way the weight lies
                    first_weight = weight + expert * WIDTH_IN * WIDTH_OUT
                    if TRANSPOSED:
                        weight_ptrs = first_weight + (columns[None, :] * WIDTH_IN + inner[:, None])
                    else:
                        weight_ptrs = first_weight + (inner[:, None] * WIDTH_OUT + columns[None, :])
                # Sums are float32 whatever the dtype, and rounded once, when they are stored.
                product = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.float32)
                input_ptrs = first_input_ptrs
                for start in range(0, WIDTH_IN, BLOCK_IN):
                    in_inner = start + inner < WIDTH_IN
                    if not is_narrow:
                        if WIDTH_IN % BLOCK_IN == 0:
                            values = tl.load(input_ptrs)
                        else:
                            values = tl.load(input_ptrs, mask=in_inner[None, :], other=0.0)
                        input_ptrs += BLOCK_IN
                    if DESCRIPTOR:  # what is outside of an expert's matrix reads as zero
                        first_column = column_tile * BLOCK_OUT
                        if TRANSPOSED:
                            loaded = weight.load([expert.to(tl.int32), first_column, start])
                            weights = loaded.reshape(BLOCK_OUT, BLOCK_IN).T
                        else:
                            loaded = weight.load([expert.to(tl.int32), start, first_column])
                            weights = loaded.reshape(BLOCK_IN, BLOCK_OUT)
                    else:
                        if WIDTH_IN % BLOCK_IN == 0 and WIDTH_OUT % BLOCK_OUT == 0:
                            weights = tl.load(weight_ptrs)
                        else:
                            in_weight = in_inner[:, None] & in_width[None, :]
                            weights = tl.load(weight_ptrs, mask=in_weight, other=0.0)
                        weight_ptrs += BLOCK_IN if TRANSPOSED else BLOCK_IN * WIDTH_OUT
                    product = tl.dot(values, weights, product, input_precision=PRECISION)

                if EPILOGUE == "relu_gradient" or EPILOGUE == "gate_gradient":
                    partner_rows = slots // SLOTS_PER_PARTNER if SLOTS_PER_PARTNER > 0 else rows
                    partner_ptrs = partner_ptr + partner_rows[:, None] * WIDTH_OUT + columns[None]
                    partner = tl.load(partner_ptrs, mask=in_width[None, :], other=0.0)
                    if HAS_GATE:
                        gradient = tl.sum(product * partner.to(tl.float32), 1)
                        gradient_ptrs = gate_gradient_ptr + column_tile.to(tl.int64) * num_slots
                        tl.store(gradient_ptrs + slots, gradient, mask=in_tile)
                    if EPILOGUE == "relu_gradient":
                        product = tl.where(partner > 0.0, product, 0.0)
                if EPILOGUE == "relu":
                    # A comparison and not a maximum, which would turn NaN into 0.
                    product = tl.where(product < 0.0, 0.0, product)
                if HAS_GATE:
                    gate = tl.load(gate_ptr + slots).to(tl.float32)[:, None]
                    product *= gate
                if STORES_OUTPUT:
                    output = product.to(output_ptr.dtype.element_ty)
                    tl.store(output_ptr + offsets, output, mask=stored)
                if EPILOGUE == "relu_gradient" and HAS_GATE:
                    # After the store of the product, whose registers are free now.
                    gated = (partner.to(tl.float32) * gate).to(gated_ptr.dtype.element_ty)
                    tl.store(gated_ptr + offsets, gated, mask=stored)


@triton.jit(do_not_specialize=["num_experts"])
def weight_gradient_kernel(
    left_ptr,
    right_ptr,
    gradient_ptr,
    gate_ptr,
    order_ptr,
    offsets_ptr,
    num_experts,
    WIDTH_LEFT: tl.constexpr,
    WIDTH_RIGHT: tl.constexpr,
    SLOTS_PER_LEFT: tl.constexpr,
    SLOTS_PER_RIGHT: tl.constexpr,
    HAS_GATE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    ADDS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Sum outer products over the rows of each expert: Σ_r left[r]ᵀ (gate[r] · right[r]).

    The gradient is (NUM_PARTS, E, WIDTH_LEFT, WIDTH_RIGHT): with few experts their rows are cut in
    parts that are added later. Every element is written by one program, in a fixed order of rows.
    Where ADDS, it is added to what is there. The gate is 1 unless HAS_GATE.
    """
    left_tiles: tl.constexpr = (WIDTH_LEFT + BLOCK_LEFT - 1) // BLOCK_LEFT
    right_tiles: tl.constexpr = (WIDTH_RIGHT + BLOCK_RIGHT - 1) // BLOCK_RIGHT
    block = tl.program_id(0)
    left_tile = block // right_tiles % left_tiles
    right_tile = block % right_tiles
    part_of_expert = block // (left_tiles * right_tiles)
    expert = part_of_expert // NUM_PARTS
    part = part_of_expert % NUM_PARTS
    start = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    if NUM_PARTS > 1:
        blocks_per_part = tl.cdiv(end - start, NUM_PARTS * BLOCK_ROWS)
        start += part * blocks_per_part * BLOCK_ROWS
        end = tl.minimum(end, start + blocks_per_part * BLOCK_ROWS)
    left_columns = left_tile * BLOCK_LEFT + tl.arange(0, BLOCK_LEFT)  # (BLOCK_LEFT,)
    right_columns = right_tile * BLOCK_RIGHT + tl.arange(0, BLOCK_RIGHT)
    in_left = left_columns < WIDTH_LEFT
    in_right = right_columns < WIDTH_RIGHT
    total = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), dtype=tl.float32)
    # A count of 32 bits, as the rows of one expert fit in it; their addresses may not.
    for first_row in range(0, (end - start).to(tl.int32), BLOCK_ROWS):
        rows = start + first_row + tl.arange(0, BLOCK_ROWS)
        in_expert = rows < end  # (BLOCK_ROWS,): rows are summed over, so both factors are masked
        slots = tl.load(order_ptr + rows, mask=in_expert, other=0)
        left_rows = slots // SLOTS_PER_LEFT if SLOTS_PER_LEFT > 0 else rows
        right_rows = slots // SLOTS_PER_RIGHT if SLOTS_PER_RIGHT > 0 else rows
        # (BLOCK_ROWS, BLOCK_LEFT) and (BLOCK_ROWS, BLOCK_RIGHT)
        left_ptrs = left_ptr + left_rows[:, None] * WIDTH_LEFT + left_columns[None, :]
        right_ptrs = right_ptr + right_rows[:, None] * WIDTH_RIGHT + right_columns[None, :]
        if WIDTH_LEFT % BLOCK_LEFT == 0:
            left = tl.load(left_ptrs, mask=in_expert[:, None], other=0.0)
        else:
            left = tl.load(left_ptrs, mask=in_expert[:, None] & in_left[None, :], other=0.0)
        if WIDTH_RIGHT % BLOCK_RIGHT == 0:
            right = tl.load(right_ptrs, mask=in_expert[:, None], other=0.0)
        else:
            right = tl.load(right_ptrs, mask=in_expert[:, None] & in_right[None, :], other=0.0)
        if HAS_GATE:
            gate = tl.load(gate_ptr + slots, mask=in_expert, other=0.0).to(tl.float32)
            gated = right.to(tl.float32) * gate[:, None]
            right = gated.to(right_ptr.dtype.element_ty)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    first_element = (part * num_experts + expert).to(tl.int64) * WIDTH_LEFT * WIDTH_RIGHT
    gradient_ptrs = (
        gradient_ptr
        + first_element
        + (left_columns[:, None] * WIDTH_RIGHT + right_columns[None, :])
    )
    in_gradient = in_left[:, None] & in_right[None, :]
    if ADDS:
        total += tl.load(gradient_ptrs, mask=in_gradient, other=0.0)
    tl.store(gradient_ptrs, total.to(gradient_ptr.dtype.element_ty), mask=in_gradient)


@triton.jit(do_not_specialize=["num_rows", "first_column"])
def row_sum_kernel(
    input_ptr,
    output_ptr,
    num_rows,
    first_column,
    WIDTH: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    SLOTS_PER_OUTPUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Sum each SLOTS_PER_OUTPUT consecutive rows of (rows, WIDTH), in float32 and in their order.

    Written to columns ``first_column:first_column + WIDTH`` of the output.
    """
    column_tiles: tl.constexpr = (WIDTH + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    rows = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    input_ptrs = input_ptr + rows[:, None] * (SLOTS_PER_OUTPUT * WIDTH) + columns[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for _ in range(SLOTS_PER_OUTPUT):
        total += tl.load(input_ptrs, mask=mask, other=0.0).to(tl.float32)
        input_ptrs += WIDTH
    output_ptrs = output_ptr + rows[:, None] * OUTPUT_STRIDE + first_column + columns[None, :]
    tl.store(output_ptrs, total.to(output_ptr.dtype.element_ty), mask=mask)
