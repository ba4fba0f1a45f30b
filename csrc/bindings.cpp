// The Python face of the native library. Addresses come in as integers; whoever passes one owns the memory and keeps
// it for as long as the program or call that uses it. No call here holds the GIL while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "dequantize.h"
#include "isa.h"
#include "memory.h"
#include "merges.h"
#include "decode_run.h"
#include "pack.h"
#include "program.h"
#include "step_layout.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using interleaf::DType;
using interleaf::Format;
using interleaf::PagedCache;
using interleaf::Program;
using interleaf::Rows;
using interleaf::Runtime;

// A quantized weight as Python keeps it: where its parts lie and what shape it has.
struct QuantizedTable {
  Address values, scales, compensation, group_scales, group_minima;
  int n, k;
  Format format;

  interleaf::LinearQuantizedArgs args() const {
    interleaf::LinearQuantizedArgs args = {};
    args.weight = at<uint8_t>(values);
    args.scales = at<float>(scales);
    args.compensation = at<int32_t>(compensation);
    args.group_scales = at<uint16_t>(group_scales);
    args.group_minima = at<uint16_t>(group_minima);
    args.n = n;
    args.k_padded = interleaf::quantized_depth(k, format);
    args.groups = format == Format::kInt8 ? 1 : args.k_padded / interleaf::kGroupSize;
    args.format = format;
    return args;
  }
};

void bind_quantized(nb::module_& module, nb::class_<Program>& program) {
  nb::class_<QuantizedTable>(module, "QuantizedTable", "Addresses of a quantized weight's parts.")
      .def(
          "__init__",
          [](QuantizedTable* self, Address values, Address scales, Address compensation, Address group_scales,
             Address group_minima, int n, int k, Format format) {
            new (self) QuantizedTable{values, scales, compensation, group_scales, group_minima, n, k, format};
          },
          nb::kw_only(), "values"_a, "scales"_a, "compensation"_a, "group_scales"_a, "group_minima"_a, "n"_a, "k"_a,
          "format"_a)
      .def_prop_ro("k_padded", [](const QuantizedTable& self) { return self.args().k_padded; })
      .def_prop_ro("groups", [](const QuantizedTable& self) { return self.args().groups; });
  program.def(
      "quantize",
      [](Program& self, Rows rows, Address x, Address y, Address scales, Address sums, const QuantizedTable& table,
         DType x_type) {
        const interleaf::LinearQuantizedArgs shape = table.args();
        self.add<&interleaf::KernelTable::quantize>(
            "quantize", rows,
            interleaf::QuantizeArgs{at<void>(x), at<uint8_t>(y), at<float>(scales), at<int32_t>(sums), table.k,
                                    shape.k_padded, shape.groups, x_type, table.format});
      },
      nb::kw_only(), "rows"_a, "x"_a, "y"_a, "scales"_a, "sums"_a, "table"_a, "x_type"_a);
  program.def(
      "linear_quantized",
      [](Program& self, Rows rows, Address x, Address x_scales, Address x_sums, const QuantizedTable& table, Address bias,
         Address y, DType y_type, interleaf::Epilogue epilogue) {
        interleaf::LinearQuantizedArgs args = table.args();
        args.x = at<uint8_t>(x);
        args.x_scales = at<float>(x_scales);
        args.x_sums = at<int32_t>(x_sums);
        args.bias = at<float>(bias);
        args.y = at<void>(y);
        args.y_type = y_type;
        args.epilogue = epilogue;
        self.add<&interleaf::KernelTable::linear_quantized>("linear_quantized", rows, args);
      },
      nb::kw_only(), "rows"_a, "x"_a, "x_scales"_a, "x_sums"_a, "table"_a, "bias"_a, "y"_a, "y_type"_a, "epilogue"_a);
  program.def(
      "embedding_quantized",
      [](Program& self, Address ids, const QuantizedTable& table, Address y, float scale) {
        self.add<&interleaf::KernelTable::embedding_quantized>(
            "embedding_quantized", Rows::kTokens,
            interleaf::EmbeddingQuantizedArgs{at<int32_t>(ids), table.args(), at<float>(y), table.k, scale});
      },
      nb::kw_only(), "ids"_a, "table"_a, "y"_a, "scale"_a);
}

void bind_cache(nb::module_& module) {
  nb::class_<PagedCache>(module, "PagedCache", "Addresses of one layer's keys and values.")
      .def(
          "__init__",
          [](PagedCache* self, Address keys, Address values, Address key_scales, Address value_scales, int64_t block_stride,
             int num_kv_heads, int block_size, DType type) {
            new (self) PagedCache{at<char>(keys), at<char>(values), at<char>(key_scales), at<char>(value_scales),
                                  block_stride,   num_kv_heads,     block_size,           type};
          },
          nb::kw_only(), "keys"_a, "values"_a, "key_scales"_a, "value_scales"_a, "block_stride"_a, "num_kv_heads"_a,
          "block_size"_a, "type"_a)
      .def_ro("block_size", &PagedCache::block_size);
  module.attr("ATTENTION_CHUNK") = interleaf::kAttentionChunk;
  module.attr("MOST_SHARED") = interleaf::kMostShared;
  module.def("attention_shared_bytes", &interleaf::attention_shared_bytes, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a);
  module.def("attention_partials_bytes", &interleaf::attention_partials_bytes, "num_threads"_a, "max_chunks"_a,
             "head_dim"_a);
}

nb::class_<Program> bind_program(nb::module_& module) {
  nb::class_<Program> bound(module, "Program", "A recorded forward pass.");
  bound.def(nb::init<>())
      .def("__len__", &Program::size)
      .def("append", &Program::append, "other"_a, "Goes on with the ops of another.")
      .def("names",
           [](const Program& program) {
             std::vector<std::string> names;
             for (const interleaf::Op& op : program.ops()) names.emplace_back(op.name);
             return names;
           })
      .def(
          "embedding",
          [](Program& program, Address ids, Address table, Address y, int width, float scale, DType table_type) {
            program.add<&interleaf::KernelTable::embedding>(
                "embedding", Rows::kTokens, interleaf::EmbeddingArgs{at<int32_t>(ids), at<void>(table), at<float>(y), width, scale, table_type});
          },
          nb::kw_only(), "ids"_a, "table"_a, "y"_a, "width"_a, "scale"_a, "table_type"_a)
      .def(
          "take_rows",
          [](Program& program, Address x, Address y, Address row_index, int row_bytes) {
            program.add<&interleaf::KernelTable::take_rows>(
                "take_rows", Rows::kLogits,
                interleaf::TakeRowsArgs{at<char>(x), at<char>(y), at<int32_t>(row_index), row_bytes});
          },
          nb::kw_only(), "x"_a, "y"_a, "row_index"_a, "row_bytes"_a)
      .def(
          "rms_norm",
          [](Program& program, Rows rows, Address x, Address weight, Address y, int width, float eps, DType y_type,
             bool add) {
            program.add<&interleaf::KernelTable::rms_norm>(
                "rms_norm", rows,
                interleaf::RmsNormArgs{at<float>(x), at<float>(weight), at<void>(y), width, eps, y_type, add});
          },
          nb::kw_only(), "rows"_a, "x"_a, "weight"_a, "y"_a, "width"_a, "eps"_a, "y_type"_a, "add"_a)
      .def(
          "soft_cap",
          [](Program& program, Rows rows, Address x, int width, float cap) {
            program.add<&interleaf::KernelTable::soft_cap>("soft_cap", rows,
                                                           interleaf::SoftCapArgs{at<float>(x), width, cap});
          },
          nb::kw_only(), "rows"_a, "x"_a, "width"_a, "cap"_a)
      .def(
          "linear",
          [](Program& program, Rows rows, Address x, Address weight, Address bias, Address y, int n, int k, DType x_type,
             DType weight_type, DType y_type, interleaf::Epilogue epilogue) {
            program.add<&interleaf::KernelTable::linear>(
                "linear", rows, interleaf::LinearArgs{at<void>(x), at<void>(weight), at<float>(bias), at<void>(y), n, k, x_type,
                                            weight_type, y_type, epilogue});
          },
          nb::kw_only(), "rows"_a, "x"_a, "weight"_a, "bias"_a, "y"_a, "n"_a, "k"_a, "x_type"_a, "weight_type"_a,
          "y_type"_a, "epilogue"_a)
      .def(
          "rotary_cache",
          [](Program& program, Address qkv, Address q, const PagedCache& cache, Address q_norm, Address k_norm,
             Address cos_sin, Address positions, Address slots, int num_heads, int head_dim, int rotary_dim, float eps,
             DType type) {
            program.add<&interleaf::KernelTable::rotary_cache>(
                "rotary_cache", Rows::kTokens,
                interleaf::RotaryCacheArgs{at<float>(qkv), at<void>(q), cache, at<float>(q_norm), at<float>(k_norm),
                                           at<float>(cos_sin), at<int32_t>(positions), at<int32_t>(slots), num_heads,
                                           head_dim, rotary_dim, eps, type});
          },
          nb::kw_only(), "qkv"_a, "q"_a, "cache"_a, "q_norm"_a, "k_norm"_a, "cos_sin"_a, "positions"_a, "slots"_a,
          "num_heads"_a, "head_dim"_a, "rotary_dim"_a, "eps"_a, "type"_a)
      .def(
          "attention",
          [](Program& program, Address q, Address y, const PagedCache& cache, Address partials, Address shared_states,
             Address shared_chunks, Address shared_with, Address block_tables, int64_t block_table_stride, Address sequence_rows, Address query_start, Address context_lengths, int num_heads,
             int head_dim, int max_chunks, int window, float scale, float soft_cap, DType type) {
            const interleaf::AttentionArgs args = {
                at<void>(q), at<void>(y), cache, at<void>(partials), at<float>(shared_states), at<int32_t>(shared_chunks),
                at<int32_t>(shared_with), at<int32_t>(block_tables), at<int32_t>(sequence_rows), at<int32_t>(query_start),
                at<int32_t>(context_lengths), block_table_stride, num_heads, head_dim, max_chunks, window, scale,
                soft_cap, type};
            if (shared_chunks)
              program.add<&interleaf::KernelTable::attention_shared>("attention_shared", Rows::kSequences, args);
            program.add<&interleaf::KernelTable::attention>("attention", Rows::kSequences, args);
          },
          nb::kw_only(), "q"_a, "y"_a, "cache"_a, "partials"_a, "shared_states"_a, "shared_chunks"_a, "shared_with"_a, "block_tables"_a, "block_table_stride"_a,
          "sequence_rows"_a, "query_start"_a, "context_lengths"_a, "num_heads"_a, "head_dim"_a, "max_chunks"_a, "window"_a,
          "scale"_a, "soft_cap"_a, "type"_a);
  return bound;
}

std::vector<interleaf::SourceTensor> source_tensors(
    const std::vector<std::tuple<Address, std::string, int, size_t>>& sources) {
  std::vector<interleaf::SourceTensor> tensors;
  for (const auto& [data, dtype, rows, row_bytes] : sources) tensors.push_back({at<uint8_t>(data), dtype, rows, row_bytes});
  return tensors;
}

void bind_layout(nb::module_& module) {
  nb::class_<interleaf::StepLayout>(module, "StepLayout", "Lays out a step in arrays whose addresses stay the same.")
      .def(
          "__init__",
          [](interleaf::StepLayout* self, Address token_ids, int64_t token_stride, Address num_tokens,
             Address num_computed_tokens, Address samples,
             const std::vector<Address>& given, const std::vector<Address>& found, Address tokens,
             const std::vector<Address>& inputs,
             const std::vector<std::tuple<Address, int64_t, Address>>& groups, int block_size) {
            std::vector<interleaf::GroupSlots> slots;
            for (const auto& [tables, stride, to] : groups) slots.push_back({at<int32_t>(tables), stride, at<int32_t>(to)});
            new (self) interleaf::StepLayout(
                {at<int32_t>(token_ids), token_stride, at<int32_t>(num_tokens), at<int32_t>(num_computed_tokens),
                 at<uint8_t>(samples)},
                {at<int32_t>(given.at(0)), at<int32_t>(given.at(1)), at<int32_t>(given.at(2)), at<int32_t>(found.at(0)),
                 at<int32_t>(found.at(1)), at<int32_t>(found.at(2)), at<int32_t>(found.at(3)), at<int32_t>(found.at(4)),
                 at<int32_t>(found.at(5)), at<int32_t>(found.at(6)), at<int32_t>(tokens)},
                {at<int32_t>(inputs.at(0)), at<int32_t>(inputs.at(1)), at<int32_t>(inputs.at(2)),
                 at<int32_t>(inputs.at(3)), at<int32_t>(inputs.at(4))},
                std::move(slots), block_size);
          },
          nb::kw_only(), "token_ids"_a, "token_stride"_a, "num_tokens"_a, "num_computed_tokens"_a,
          "samples"_a, "given"_a, "found"_a, "tokens"_a, "inputs"_a,
          "groups"_a, "block_size"_a, "The lists hold addresses, in the order of the members in step_layout.h.")
      .def("write", &interleaf::StepLayout::write, "num_sequences"_a,
           "Returns how many tokens the step has and how many it samples.")
      .def("advance", &interleaf::StepLayout::advance, "num_sequences"_a, "num_samples"_a,
           "Puts the results of a step without drafts into the batch; returns the tokens.");
}

// Where the parameters of sampling lie; [L] each.
struct SamplingArrays {
  Address temperatures, top_k, top_p, min_p, seeds, positions, tokens;
};

interleaf::SampleArgs sample_args(Address logits, const SamplingArrays& how, int vocab_size) {
  return {at<float>(logits),  at<float>(how.temperatures), at<int32_t>(how.top_k),
          at<float>(how.top_p), at<float>(how.min_p),        at<uint64_t>(how.seeds),
          at<int32_t>(how.positions), at<int32_t>(how.tokens), vocab_size};
}

void bind_sampling(nb::module_& module, nb::class_<Program>& program) {
  nb::class_<SamplingArrays>(module, "SamplingArrays", "Addresses of how each row is sampled, and of the tokens.")
      .def(
          "__init__",
          [](SamplingArrays* self, Address temperatures, Address top_k, Address top_p, Address min_p, Address seeds,
             Address positions, Address tokens) {
            new (self) SamplingArrays{temperatures, top_k, top_p, min_p, seeds, positions, tokens};
          },
          nb::kw_only(), "temperatures"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seeds"_a, "positions"_a, "tokens"_a);
  program.def(
      "sample",
      [](Program& self, Address logits, const SamplingArrays& how, int vocab_size) {
        self.add<&interleaf::KernelTable::sample>("sample", Rows::kLogits, sample_args(logits, how, vocab_size));
      },
      nb::kw_only(), "logits"_a, "how"_a, "vocab_size"_a);
}

void bind_runtime(nb::module_& module) {
  nb::class_<Runtime>(module, "Runtime", "The team of threads and the kernels of one instruction level.")
      .def(
          "__init__",
          [](Runtime* self, int num_threads, const std::string& level, size_t scratch_bytes) {
            new (self) Runtime(num_threads, interleaf::parse_level(level), scratch_bytes);
          },
          "num_threads"_a, "level"_a, "scratch_bytes"_a = 0)
      .def_prop_ro("level", [](const Runtime& self) { return std::string(interleaf::level_name(self.level())); })
      .def_prop_ro("num_threads", [](Runtime& self) { return self.team().size(); })
      .def("give_way_to", &Runtime::give_way_to, "pid"_a, "Leaves a core to this process while it computes; 0 is nobody.")
      .def(
          "run",
          [](Runtime& self, const Program& program, int num_tokens, int num_logits, int num_sequences) {
            nb::gil_scoped_release released;
            return self.run(program, {num_tokens, num_logits, num_sequences});
          },
          "program"_a, "num_tokens"_a, "num_logits"_a, "num_sequences"_a, "Returns the nanoseconds it took.")
      .def(
          "profile",
          [](Runtime& self, const Program& program, int num_tokens, int num_logits, int num_sequences) {
            nb::gil_scoped_release released;
            return self.profile(program, {num_tokens, num_logits, num_sequences});
          },
          "program"_a, "num_tokens"_a, "num_logits"_a, "num_sequences"_a, "Returns the nanoseconds of each op.")
      .def(
          "read_probe",
          [](Runtime& self, size_t bytes) {
            nb::gil_scoped_release released;
            return self.read_probe(bytes);
          },
          "bytes"_a, "Gigabytes a second of a plain read of so much memory by all threads.")
      .def(
          "run_decode_steps",
          [](Runtime& self, const Program& program, const interleaf::StepLayout& layout, int num_tokens, int num_logits,
             int num_sequences, const SamplingArrays& how, int num_steps, const std::vector<int32_t>& ending) {
            nb::gil_scoped_release released;
            interleaf::DecodeRun done = interleaf::run_decode_steps(
                self, program, layout, {num_tokens, num_logits, num_sequences}, at<int32_t>(how.positions), num_steps, ending);
            return std::pair(std::move(done.tokens), done.nanoseconds);
          },
          "program"_a, "layout"_a, "num_tokens"_a, "num_logits"_a, "num_sequences"_a, "how"_a, "num_steps"_a, "ending"_a,
          "Returns the tokens of each step, and the nanoseconds that the program took. See decode_run.h.")
      .def(
          "sample",
          [](Runtime& self, Address logits, const SamplingArrays& how, int vocab_size, int rows) {
            nb::gil_scoped_release released;
            return self.run_one<&interleaf::KernelTable::sample>(sample_args(logits, how, vocab_size), rows);
          },
          "logits"_a, "how"_a, "vocab_size"_a, "rows"_a, "Returns the nanoseconds it took.")
      .def(
          "logprobs",
          [](Runtime& self, Address logits, Address rows, Address tokens, Address num_top, Address chosen_logprobs,
             Address chosen_ranks, Address top_tokens, Address top_logprobs, int top_stride, int vocab_size, int count) {
            nb::gil_scoped_release released;
            return self.run_one<&interleaf::KernelTable::logprobs>(
                interleaf::LogprobsArgs{at<float>(logits), at<int32_t>(rows), at<int32_t>(tokens), at<int32_t>(num_top),
                                        at<float>(chosen_logprobs), at<int32_t>(chosen_ranks), at<int32_t>(top_tokens),
                                        at<float>(top_logprobs), top_stride, vocab_size},
                count);
          },
          nb::kw_only(), "logits"_a, "rows"_a, "tokens"_a, "num_top"_a, "chosen_logprobs"_a, "chosen_ranks"_a,
          "top_tokens"_a, "top_logprobs"_a, "top_stride"_a, "vocab_size"_a, "count"_a,
          "Returns the nanoseconds it took.")
      .def(
          "pack_linear",
          [](Runtime& self, const std::vector<std::tuple<Address, std::string, int, size_t>>& sources, int k, DType type,
             bool interleaved, Address destination) {
            const std::vector<interleaf::SourceTensor> tensors = source_tensors(sources);
            nb::gil_scoped_release released;
            interleaf::pack_linear(tensors, k, type, interleaved, at<void>(destination), self.team());
          },
          nb::kw_only(), "sources"_a, "k"_a, "type"_a, "interleaved"_a, "destination"_a,
          "Sources are (address, dtype, rows, bytes a row).")
      .def(
          "pack_quantized",
          [](Runtime& self, const std::vector<std::tuple<Address, std::string, int, size_t>>& sources, int k, Format format,
             bool interleaved, const QuantizedTable& to) {
            const std::vector<interleaf::SourceTensor> tensors = source_tensors(sources);
            nb::gil_scoped_release released;
            interleaf::pack_quantized(tensors, k, format, interleaved,
                                      {at<uint8_t>(to.values), at<float>(to.scales), at<int32_t>(to.compensation),
                                       at<uint16_t>(to.group_scales), at<uint16_t>(to.group_minima)},
                                      self.team());
          },
          nb::kw_only(), "sources"_a, "k"_a, "format"_a, "interleaved"_a, "to"_a);
}

}  // namespace

NB_MODULE(_native, module) {
  nb::enum_<DType>(module, "DType").value("float32", DType::kF32).value("bfloat16", DType::kBf16).value("int8", DType::kInt8);
  nb::enum_<Rows>(module, "Rows")
      .value("TOKENS", Rows::kTokens)
      .value("LOGITS", Rows::kLogits)
      .value("SEQUENCES", Rows::kSequences);
  nb::enum_<interleaf::Epilogue>(module, "Epilogue")
      .value("STORE", interleaf::Epilogue::kStore)
      .value("ADD", interleaf::Epilogue::kAdd)
      .value("SILU_MUL", interleaf::Epilogue::kSiluMul)
      .value("GELU_MUL", interleaf::Epilogue::kGeluMul);
  nb::class_<interleaf::Memory>(module, "Memory", "Zeroed memory, aligned to a page, freed with the object.")
      .def(nb::init<size_t>(), "bytes"_a)
      .def_prop_ro("address", [](const interleaf::Memory& memory) { return reinterpret_cast<Address>(memory.data()); })
      .def_prop_ro("bytes", &interleaf::Memory::bytes)
      .def("touch_ahead", &interleaf::Memory::touch_ahead, "used"_a, "ahead"_a,
           "Have `ahead` bytes beyond those in use touched in the background, while the process computes nothing.");
  nb::enum_<Format>(module, "Format")
      .value("INT8", Format::kInt8)
      .value("GROUP4", Format::kGroup4)
      .value("GROUP4_MIN", Format::kGroup4Min)
      .value("GROUP8", Format::kGroup8)
      .value("GROUP8_MIN", Format::kGroup8Min);
  bind_cache(module);
  nb::class_<Program> program = bind_program(module);
  bind_quantized(module, program);
  bind_layout(module);
  bind_sampling(module, program);
  bind_runtime(module);
  module.def("quantized_bytes", &interleaf::quantized_bytes, "n"_a, "k"_a, "format"_a, "interleaved"_a);
  module.def("padded_columns", &interleaf::padded_columns, "n"_a, "interleaved"_a);
  module.def("format_of", &interleaf::format_of, "dtype"_a, "The format that holds a GGUF type in its own precision.");
  module.def("usable_levels", [] {
    std::vector<std::string> names;
    for (interleaf::Level level : interleaf::usable_levels()) names.emplace_back(interleaf::level_name(level));
    return names;
  });
  module.def("merges_from_scores", &interleaf::merges_from_scores, "pieces"_a, "names"_a, "scores"_a, "usable"_a,
             nb::call_guard<nb::gil_scoped_release>(), "Pairs of ids, best first; see merges.h.");
  module.def("packed_bytes", &interleaf::packed_bytes, "n"_a, "k"_a, "type"_a, "interleaved"_a);
  module.def(
      "decode",
      [](const std::string& dtype, Address data, size_t count, Address destination) {
        nb::gil_scoped_release released;
        return interleaf::decode(dtype, at<uint8_t>(data), count, at<float>(destination));
      },
      "dtype"_a, "data"_a, "count"_a, "destination"_a, "Values of any checkpoint dtype as float32; False if unknown.");
  module.def(
      "dequantize_f32",
      [](const std::string& type_name, Address source, size_t num_values, Address destination) {
        nb::gil_scoped_release released;
        return interleaf::dequantize_f32(type_name.c_str(), at<uint8_t>(source), num_values, at<float>(destination));
      },
      "type_name"_a, "source"_a, "num_values"_a, "destination"_a);
}
