import pytest

from tools import hlo_collectives, hlo_flops, hlo_overlap, hlo_text, hlo_traffic

MESH = {"data": 2, "fsdp": 1, "expert": 4, "tensor": 1}

# The forms that the TPU compiler writes, shortened. Per step of 3 turns: a gather over
# data (in three parts), an exchange over expert; once: a sum, a reduce-scatter.
STEP = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%begin (p.0: bf16[8,4]) -> (bf16[8,4], bf16[16,4], u32[]) {
  %p.0 = bf16[8,4]{1,0} parameter(0)
  %gather.1 = bf16[16,4]{1,0} all-gather(%p.0), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}, \
frontend_attributes={chain_id="3"}, metadata={op_name="jit(step)/up/kernel"}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  %flag = u32[]{:S(2)} constant(0)
  ROOT %t.1 = (bf16[8,4]{1,0}, bf16[16,4]{1,0}, u32[]{:S(2)}) \
tuple(%p.0, %gather.1, %flag)
}

%async_collective_fusion.1 (p.1: bf16[8,4], p.2: bf16[16,4]) -> bf16[16,4] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %p.2 = bf16[16,4]{1,0} parameter(1)
  ROOT %gather.2 = bf16[16,4]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}, \
frontend_attributes={chain_id="3"}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%all-reduce-scatter.1 (input: f32[8,4]) -> f32[4,4] {
  %input = f32[8,4]{1,0} parameter(0)
  %whole = f32[8,4]{1,0} all-reduce(%input), channel_id=9, \
replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %own = f32[4,4]{1,0} dynamic-slice(%whole, %zero, %zero), \
dynamic_slice_sizes={4,4}
}

%condition (s.0: (s32[], bf16[8,4])) -> pred[] {
  %s.0 = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%s.0), index=0
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i.0, %limit), direction=LT
}

%body (s.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %s.1 = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %x.1 = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%s.1), index=1
  %start = (bf16[8,4]{1,0}, bf16[16,4]{1,0}, u32[]{:S(2)}) fusion(%x.1), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
  %x.2 = bf16[16,4]{1,0} get-tuple-element(%start), index=1
  %done = bf16[16,4]{1,0} fusion(%x.1, %x.2), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%async_collective_fusion.1
  %x.3 = bf16[8,4]{1,0} all-to-all(%x.1), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="jit(step)/all_to_all"}
  ROOT %t.2 = (s32[], bf16[8,4]{1,0}) tuple(%i.1, %x.3)
}

ENTRY %main (x: bf16[8,4], y: f32[8,4]) -> (f32[4,4], bf16[8,4]) {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = f32[8,4]{1,0} parameter(1)
  %zero.1 = s32[] constant(0)
  %s.2 = (s32[], bf16[8,4]{1,0}) tuple(%zero.1, %x)
  %loop = (s32[], bf16[8,4]{1,0}) while(%s.2), condition=%condition, body=%body
  %sum.1 = f32[8,4]{1,0} all-reduce(%y), channel_id=2, replica_groups={}, to_apply=%add
  %part = f32[4,4]{1,0} fusion(%sum.1), kind=kCustom, calls=%all-reduce-scatter.1
  %x.4 = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %t.3 = (f32[4,4]{1,0}, bf16[8,4]{1,0}) tuple(%part, %x.4)
}
"""


def found(text=STEP):
  return hlo_collectives.find(hlo_text.parse(text), MESH)


def test_every_collective_is_found_once_with_its_axes_bytes_and_times():
  got = {(c.kind, c.axes): (c.times, c.bytes) for c in found()}
  assert len(found()) == len(got)
  assert got == {
    ("all-gather", ("data",)): (3, 64),  # the other's 8 x 4 bf16
    ("all-to-all", ("expert",)): (3, 48),  # three quarters of them
    ("all-reduce", ("data", "expert")): (1, 224),  # 2 * 7 / 8 of 8 x 4 f32
    ("reduce-scatter", ("data",)): (1, 64),
  }


def test_parts_woven_into_other_work_are_asynchronous():
  assert {c.kind for c in found() if c.asynchronous} == {"all-gather"}
  source = {c.kind: c.source for c in found()}
  assert source["all-gather"] == "jit(step)/up/kernel"


def test_sums_by_kind_and_axes():
  table = hlo_collectives.by_kind_and_axes(found())
  assert table[("all-to-all", "expert")] == (3, 144)
  assert next(iter(table)) == ("all-reduce", "data+expert")  # the largest first


def test_a_start_and_done_pair_counts_once():
  text = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{0,4},{4,0},{1,1}}
  ROOT %d = f32[4]{0} collective-permute-done(%s)
}
"""
  (c,) = found(text)
  assert (c.kind, c.axes, c.bytes) == ("collective-permute", ("data",), 16)
  assert c.asynchronous and c.groups == ((0, 4), (4, 0))


def test_what_hosts_exchange_between_slices_is_found():
  text = """
ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[8,4]{1,0}, u32[], token[]) send(%x, %token), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE",is_spmd_generated="true"}
  %recv = (f32[8,4]{1,0}, u32[], token[]) recv(%token), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2
  %got = (f32[8,4]{1,0}, token[]) recv-done(%recv), channel_id=1
  ROOT %y = f32[8,4]{1,0} get-tuple-element(%got), index=0
}
"""
  module = hlo_text.parse(text)
  (c,) = hlo_collectives.find(module, MESH, slices=2)
  assert (c.kind, c.axes, c.bytes) == ("all-reduce", ("slices",), 128)
  assert c.asynchronous
  assert hlo_traffic.total(module) == 256
  (c,) = hlo_collectives.find(module, MESH, slices=4)
  assert c.bytes == 192  # 2 * 3 / 4


def test_what_is_wrapped_in_an_async_start_is_found_and_hides():
  text = """
%wrapped (p.0: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %swap = f32[8]{0} all-to-all(%p.0), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%x), calls=%wrapped
  ROOT %d = f32[8]{0} async-done(%s), calls=%wrapped
}
"""
  (c,) = found(text)
  assert (c.kind, c.axes, c.bytes, c.asynchronous) == ("all-to-all", ("expert",), 24, 1)
  assert c.meanwhile == ()  # nothing stands in between


# Products of all kinds; "batch" is [b, m, k] x [b, k, n] as the TPU compiler writes it.
PRODUCTS = """
%inside (p.0: bf16[6,4], p.1: bf16[4,5]) -> bf16[6,5] {
  %p.0 = bf16[6,4]{1,0} parameter(0)
  %p.1 = bf16[4,5]{1,0} parameter(1)
  ROOT %c = bf16[6,5]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%more (s.0: (s32[], bf16[6,5])) -> pred[] {
  %s.0 = (s32[], bf16[6,5]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%s.0), index=0
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i.0, %limit), direction=LT
}

%body (s.1: (s32[], bf16[6,5])) -> (s32[], bf16[6,5]) {
  %s.1 = (s32[], bf16[6,5]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %a.1 = bf16[6,4]{1,0} constant({...})
  %b.1 = bf16[4,5]{1,0} constant({...})
  %f = bf16[6,5]{1,0} fusion(%a.1, %b.1), kind=kOutput, calls=%inside
  ROOT %t.1 = (s32[], bf16[6,5]{1,0}) tuple(%i.1, %f)
}

ENTRY %main (x: f32[16], a: bf16[7,6,4], b: bf16[7,4,5], i: bf16[2,9,3]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %a = bf16[7,6,4]{2,1,0} parameter(1)
  %b = bf16[7,4,5]{2,1,0} parameter(2)
  %i = bf16[2,9,3]{2,1,0} parameter(3)
  %k = bf16[3,3,8]{2,1,0} constant({...})
  %zero = s32[] constant(0)
  %s.2 = (s32[], bf16[6,5]{1,0}) tuple(%zero, %a)
  %start = ((f32[16]{0}), f32[16]{0}, u32[]) all-to-all-start(%x), \
replica_groups=[2,4]<=[8], dimensions={0}
  %batch = bf16[7,6,5]{2,1,0} convolution(%a, %b), \
window={size=7 stride=6 pad=0_0 lhs_dilate=7}, dim_labels=0bf_0io->0bf
  %loop = (s32[], bf16[6,5]{1,0}) while(%s.2), condition=%more, body=%body
  %done = f32[16]{0} all-to-all-done(%start)
  %same = bf16[2,9,8]{2,1,0} convolution(%i, %k), window={size=3 pad=1_1}, \
dim_labels=b0f_0io->b0f
  %dot = bf16[7,6,5]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, \
lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
  ROOT %y = f32[16]{0} negate(%done)
}
"""


def test_flops_of_products_by_their_definition():
  module = hlo_text.parse(PRODUCTS)
  scope = module.computations["main"]
  each = {name: hlo_flops.of(module, scope, i) for name, i in scope.items()}
  assert each["batch"] == each["dot"] == 2 * 7 * 6 * 4 * 5
  assert each["same"] == 2 * 2 * (3 * 9 - 2) * 3 * 8  # two taps are in the padding
  one = 2 * 6 * 4 * 5
  assert hlo_flops.total(module) == sum(each.values()) + 3 * one
  assert not hlo_flops.has_kernels(module)
  call = (
    '%same = bf16[2,9,8]{2,1,0} custom-call(%i), custom_call_target="tpu_custom_call"'
  )
  line = next(x for x in PRODUCTS.splitlines() if "%same =" in x)
  assert hlo_flops.has_kernels(hlo_text.parse(PRODUCTS.replace(line, "  " + call)))


CUBLAS = """
ENTRY %main (a: bf16[7,6,4], b: bf16[7,4,5], c: bf16[6,4]) -> bf16[6,5] {
  %a = bf16[7,6,4]{2,1,0} parameter(0)
  %b = bf16[7,4,5]{2,1,0} parameter(1)
  %c = bf16[6,4]{1,0} parameter(2)
  %batch = (bf16[7,6,5]{2,1,0}, s8[4096]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}
  %two = (bf16[5]{0}, s8[4096]{0}) custom-call(%b, %c), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0","1"]}}}
  ROOT %y = bf16[6,5]{1,0} custom-call(%c), custom_call_target="HERE"
}
"""


def test_flops_of_cublas_and_kernels_of_gpus():
  module = hlo_text.parse(CUBLAS)
  assert hlo_flops.total(module) == 2 * 7 * 6 * 4 * 5 + 2 * 7 * 4 * 5
  assert not hlo_flops.has_kernels(module)
  for name in ("__cudnn$fmhaSoftmax", "triton_kernel_call_ffi"):
    assert hlo_flops.has_kernels(hlo_text.parse(CUBLAS.replace("HERE", name)))


def test_what_runs_until_a_collective_ends_can_hide_it():
  (c,) = hlo_collectives.find(hlo_text.parse(PRODUCTS), MESH)
  assert c.meanwhile is not None
  flops, moved = map(sum, zip(*c.meanwhile, strict=True))
  assert flops == 2 * 7 * 6 * 4 * 5 + 3 * 2 * 6 * 4 * 5  # not what comes after it
  assert moved == 2 * 7 * (6 * 4 + 4 * 5 + 6 * 5) + 3 * 2 * (6 * 4 + 4 * 5 + 6 * 5)
  endless = PRODUCTS.replace("all-to-all-done(%start)", "negate(%x)")
  (c,) = hlo_collectives.find(hlo_text.parse(endless), MESH)
  assert c.meanwhile == hlo_overlap.UNKNOWN


def test_work_that_parts_are_woven_into_hides_them():
  (c,) = (c for c in found() if c.asynchronous)
  module = hlo_text.parse(STEP)
  scope = module.computations["body"]
  assert c.meanwhile == tuple(
    (0, hlo_traffic.moved(module, scope, scope[name])) for name in ("start", "done")
  )


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,2},{1,3}}, x", ((0, 2), (1, 3))),
    ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
    ("replica_groups={}, x", ((0, 1, 2, 3),)),
    ("dimensions={0}", ((0, 1, 2, 3),)),
  ],
)
def test_groups(text, groups):
  assert hlo_collectives.parse_groups(text, 4) == groups


def test_axes_are_those_along_which_members_differ():
  mesh = {"a": 2, "b": 1, "c": 3}
  assert hlo_collectives.axes_of(((0, 1, 2), (3, 4, 5)), mesh) == ("c",)
  assert hlo_collectives.axes_of(((0, 3), (1, 4)), mesh) == ("a",)
  assert hlo_collectives.axes_of(((0, 4),), mesh) == ("a", "c")


def test_the_compiler_may_say_how_often_a_loop_turns():
  told = STEP.replace(
    "condition=%condition, body=%body",
    'condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}',
  )
  assert {c.times for c in found(told) if c.kind == "all-to-all"} == {5}


def test_a_loop_of_unknown_length_is_owned_up_to():
  unknown = STEP.replace("direction=LT", "direction=NE")
  (c,) = (c for c in found(unknown) if c.kind == "all-to-all")
  assert c.times == 1 and not c.known
  assert all(c.known for c in found())


def test_shapes():
  text = "(pred[9]{0}, bf16[2,3]{1,0:T(8,128)S(1)}, token[], f8e4m3fn[4], s4[3], f32[])"
  got = hlo_text.arrays(text)
  assert [a.bytes for a in got] == [9, 12, 4, 2, 4]
  assert [a.in_hbm for a in got] == [True, False, True, True, True]


def test_an_element_of_a_tuple_may_be_written_as_an_operand():
  text = """
ENTRY %main (a: f32[8]) -> f32[2] {
  %a = f32[8]{0} parameter(0)
  %both = (f32[4,3]{1,0}, (s32[5]{0}, /*index=2*/bf16[6,7]{1,0})) fusion(%a), calls=%f
  %inner = bf16[6,7]{1,0} negate(%both#1)
  ROOT %y = f32[2]{0} custom-call(%both#0, %inner), custom_call_target="x"
}
"""
  scope = hlo_text.parse(text).computations["main"]
  assert scope["y"].operands == ("both#0", "inner")
  assert [a.dims for a in scope["both#0"].arrays] == [(4, 3)]
  assert [a.dims for a in scope["both#1"].arrays] == [(5,), (6, 7)]
  assert hlo_traffic.moved(hlo_text.parse(text), scope, scope["y"]) == 48 + 84 + 8
  assert hlo_traffic.moved(hlo_text.parse(text), scope, scope["both#0"]) == 0


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo_text.parse("HloModule x")


def test_traffic_of_memory():
  # In the loop, 3 times: the gather writes 128 and reads 64, the exchange 64 and 64;
  # what a part passes on is free. Then the sum, 128 + 128, and its slice, 128 + 64.
  assert hlo_traffic.total(hlo_text.parse(STEP)) == 3 * (192 + 128) + 256 + 192


def test_traffic_counts_the_slice_of_a_stack_and_not_the_stack():
  text = """
%take (p.0: f32[10,8], p.1: s32[]) -> f32[1,8] {
  %p.0 = f32[10,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %z), dynamic_slice_sizes={1,8}
  ROOT %n = f32[1,8]{1,0} negate(%row)
}

%put (q.0: f32[10,8], q.1: f32[1,8], q.2: s32[]) -> (f32[10,8], f32[10,8]) {
  %q.0 = f32[10,8]{1,0} parameter(0)
  %q.1 = f32[1,8]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %z = s32[] constant(0)
  %u.1 = f32[10,8]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %z)
  %u.2 = f32[10,8]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %z)
  %u.3 = f32[10,8]{1,0} bitcast(%u.2)
  ROOT %u.4 = (f32[10,8]{1,0}, f32[10,8]{1,0}) tuple(%u.1, %u.3)
}

ENTRY %main (x: f32[10,8], i: s32[]) -> (f32[10,8], f32[10,8]) {
  %x = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%take
  %s = ((f32[10,8]{1,0}), f32[1,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), \
slice={[0:1], [0:8]}
  %d = f32[1,8]{1,0:S(1)} slice-done(%s)
  %c = (f32[1,8]{1,0}, f32[1,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%d)
  %e = f32[1,8]{1,0} copy-done(%c)
  ROOT %o = (f32[10,8]{1,0}, f32[10,8]{1,0}) fusion(%x, %r, %i), kind=kLoop, calls=%put
}
"""
  index, row = 4, 8 * 4
  took, sliced, copied = row + index + row, row, row
  put = 2 * row + row + index
  assert hlo_traffic.total(hlo_text.parse(text)) == took + sliced + copied + put
