// The Python face of the native library. Addresses come in as integers; whoever passes one owns the memory and keeps
// it for as long as the program or call that uses it. No call here holds the GIL while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "dequantize.h"
#include "isa.h"
#include "memory.h"
#include "pack.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using interleaf::DType;
using interleaf::Program;
using interleaf::Rows;
using interleaf::Runtime;

void bind_program(nb::module_& module) {
  nb::class_<Program>(module, "Program", "A recorded forward pass.")
      .def(nb::init<>())
      .def("__len__", &Program::size)
      .def("names",
           [](const Program& program) {
             std::vector<std::string> names;
             for (const interleaf::Op& op : program.ops()) names.emplace_back(op.name);
             return names;
           })
      .def(
          "embedding",
          [](Program& program, Address ids, Address table, Address y, int width, DType table_type) {
            program.add<&interleaf::KernelTable::embedding>(
                "embedding", Rows::kTokens, interleaf::EmbeddingArgs{at<int32_t>(ids), at<void>(table), at<float>(y), width, table_type});
          },
          nb::kw_only(), "ids"_a, "table"_a, "y"_a, "width"_a, "table_type"_a)
      .def(
          "rms_norm",
          [](Program& program, Rows rows, Address x, Address weight, Address y, Address row_index, int width, float eps,
             DType y_type) {
            program.add<&interleaf::KernelTable::rms_norm>(
                "rms_norm", rows, interleaf::RmsNormArgs{at<float>(x), at<float>(weight), at<void>(y), at<int32_t>(row_index), width,
                                             eps, y_type});
          },
          nb::kw_only(), "rows"_a, "x"_a, "weight"_a, "y"_a, "row_index"_a, "width"_a, "eps"_a, "y_type"_a)
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
          [](Program& program, Address qkv, Address q, Address k_cache, Address v_cache, Address q_norm, Address k_norm,
             Address cos_sin, Address positions, Address slots, int num_heads, int num_kv_heads, int head_dim,
             int rotary_dim, int block_size, float eps, DType type) {
            program.add<&interleaf::KernelTable::rotary_cache>(
                "rotary_cache", Rows::kTokens,
                interleaf::RotaryCacheArgs{at<float>(qkv), at<void>(q), at<void>(k_cache), at<void>(v_cache),
                                           at<float>(q_norm), at<float>(k_norm), at<float>(cos_sin), at<int32_t>(positions),
                                           at<int32_t>(slots), num_heads, num_kv_heads, head_dim, rotary_dim, block_size,
                                           eps, type});
          },
          nb::kw_only(), "qkv"_a, "q"_a, "k_cache"_a, "v_cache"_a, "q_norm"_a, "k_norm"_a, "cos_sin"_a, "positions"_a,
          "slots"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "rotary_dim"_a, "block_size"_a, "eps"_a, "type"_a)
      .def(
          "attention",
          [](Program& program, Address q, Address y, Address k_cache, Address v_cache, Address block_tables,
             int64_t block_table_stride, Address sequence_rows, Address query_start, Address context_lengths, int num_heads,
             int num_kv_heads, int head_dim, int block_size, int window, float scale, DType type) {
            program.add<&interleaf::KernelTable::attention>(
                "attention", Rows::kSequences,
                interleaf::AttentionArgs{at<void>(q), at<void>(y), at<void>(k_cache), at<void>(v_cache),
                                         at<int32_t>(block_tables), at<int32_t>(sequence_rows), at<int32_t>(query_start),
                                         at<int32_t>(context_lengths), block_table_stride, num_heads, num_kv_heads,
                                         head_dim, block_size, window, scale, type});
          },
          nb::kw_only(), "q"_a, "y"_a, "k_cache"_a, "v_cache"_a, "block_tables"_a, "block_table_stride"_a,
          "sequence_rows"_a, "query_start"_a, "context_lengths"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
          "block_size"_a, "window"_a, "scale"_a, "type"_a);
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
          "sample",
          [](Runtime& self, Address logits, Address temperatures, Address top_k, Address top_p, Address min_p, Address seeds,
             Address positions, Address tokens, int vocab_size, int rows) {
            nb::gil_scoped_release released;
            self.run_one<&interleaf::KernelTable::sample>(
                interleaf::SampleArgs{at<float>(logits), at<float>(temperatures), at<int32_t>(top_k), at<float>(top_p),
                                      at<float>(min_p), at<uint64_t>(seeds), at<int32_t>(positions), at<int32_t>(tokens),
                                      vocab_size},
                rows);
          },
          nb::kw_only(), "logits"_a, "temperatures"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seeds"_a, "positions"_a,
          "tokens"_a, "vocab_size"_a, "rows"_a)
      .def(
          "logprobs",
          [](Runtime& self, Address logits, Address rows, Address tokens, Address num_top, Address chosen_logprobs,
             Address chosen_ranks, Address top_tokens, Address top_logprobs, int top_stride, int vocab_size, int count) {
            nb::gil_scoped_release released;
            self.run_one<&interleaf::KernelTable::logprobs>(
                interleaf::LogprobsArgs{at<float>(logits), at<int32_t>(rows), at<int32_t>(tokens), at<int32_t>(num_top),
                                        at<float>(chosen_logprobs), at<int32_t>(chosen_ranks), at<int32_t>(top_tokens),
                                        at<float>(top_logprobs), top_stride, vocab_size},
                count);
          },
          nb::kw_only(), "logits"_a, "rows"_a, "tokens"_a, "num_top"_a, "chosen_logprobs"_a, "chosen_ranks"_a,
          "top_tokens"_a, "top_logprobs"_a, "top_stride"_a, "vocab_size"_a, "count"_a)
      .def(
          "pack_linear",
          [](Runtime& self, const std::vector<std::tuple<Address, std::string, int, size_t>>& sources, int k, DType type,
             bool interleaved, Address destination) {
            std::vector<interleaf::SourceTensor> tensors;
            for (const auto& [data, dtype, rows, row_bytes] : sources)
              tensors.push_back({at<uint8_t>(data), dtype, rows, row_bytes});
            nb::gil_scoped_release released;
            interleaf::pack_linear(tensors, k, type, interleaved, at<void>(destination), self.team());
          },
          nb::kw_only(), "sources"_a, "k"_a, "type"_a, "interleaved"_a, "destination"_a,
          "Sources are (address, dtype, rows, bytes a row).");
}

}  // namespace

NB_MODULE(_native, module) {
  nb::enum_<DType>(module, "DType").value("float32", DType::kF32).value("bfloat16", DType::kBf16);
  nb::enum_<Rows>(module, "Rows")
      .value("TOKENS", Rows::kTokens)
      .value("LOGITS", Rows::kLogits)
      .value("SEQUENCES", Rows::kSequences);
  nb::enum_<interleaf::Epilogue>(module, "Epilogue")
      .value("STORE", interleaf::Epilogue::kStore)
      .value("ADD", interleaf::Epilogue::kAdd)
      .value("SILU_MUL", interleaf::Epilogue::kSiluMul);
  nb::class_<interleaf::Memory>(module, "Memory", "Zeroed memory, aligned to a page, freed with the object.")
      .def(nb::init<size_t>(), "bytes"_a)
      .def_prop_ro("address", [](const interleaf::Memory& memory) { return reinterpret_cast<Address>(memory.data()); })
      .def_prop_ro("bytes", &interleaf::Memory::bytes);
  bind_program(module);
  bind_runtime(module);
  module.def("usable_levels", [] {
    std::vector<std::string> names;
    for (interleaf::Level level : interleaf::usable_levels()) names.emplace_back(interleaf::level_name(level));
    return names;
  });
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
