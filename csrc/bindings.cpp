// The Python face of the native library. Pointers come in as integers: the callers own the memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "dequantize.h"

namespace nb = nanobind;

NB_MODULE(_native, module) {
  module.def(
      "dequantize_f32",
      [](const std::string& type_name, uintptr_t source, size_t num_values, uintptr_t destination) {
        nb::gil_scoped_release released;
        return interleaf::dequantize_f32(type_name.c_str(), reinterpret_cast<const uint8_t*>(source), num_values,
                                         reinterpret_cast<float*>(destination));
      },
      nb::arg("type_name"), nb::arg("source"), nb::arg("num_values"), nb::arg("destination"));
}
