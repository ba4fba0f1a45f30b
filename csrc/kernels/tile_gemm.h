// Linear layers on AMX tiles: rows by panels, 32 x 32 results at a time. Tiles have a unit of their own, which a thread
// keeps busy only if the vector units' work (finishing the results before, widening the weights to come, asking for
// memory) is mixed into the steps of a product rather than done between products.
#pragma once

#if defined(__AMX_BF16__)

#include "tiles.h"

namespace interleaf::INTERLEAF_LEVEL {

constexpr int kStepBytes = 16 * 128;  // of a panel, multiplied at once: 16 rows of 32 columns of 4 bytes
constexpr int kSliceSteps = 20;       // of a panel, which with them fills most of the first-level cache
constexpr int kPanelGroup = 8;        // panels that a slice of rows passes over
constexpr int kMostRows = 512;        // multiplied in one pass over the panels
constexpr size_t kRowsCache = size_t{1} << 20;  // bytes of rows that the second-level cache keeps beside the panels
constexpr size_t kBlockSumBytes = kBlockRows * kPanelColumns * 4;
constexpr size_t kSumBytes = kPanelGroup * kMostRows / kBlockRows * kBlockSumBytes;
constexpr size_t kTileScratchBytes = kSumBytes + size_t{kMostRows} * kSliceSteps * 64;

#define INTERLEAF_MEMBER inline __attribute__((always_inline))

// Products of bf16 in float32, or of unsigned (A) by signed bytes in integers.
enum class TileKind { kBf16, kInt8 };

// The intrinsics make text of their arguments: a register's number cannot be a parameter.
#define INTERLEAF_MULTIPLY(sum, a, b)          \
  do {                                         \
    if constexpr (kind == TileKind::kBf16) {   \
      _tile_dpbf16ps(sum, a, b);               \
    } else {                                   \
      _tile_dpbusd(sum, a, b);                 \
    }                                          \
  } while (0)
#define INTERLEAF_LOAD_ROWS(tile, address)          \
  do {                                              \
    if constexpr (stream) {                         \
      _tile_stream_loadd(tile, address, row_bytes); \
    } else {                                        \
      _tile_loadd(tile, address, row_bytes);        \
    }                                               \
  } while (0)

// Adds a block of rows times `steps` steps of a panel to tiles 0-3. `panel_at(step)` gives a step's columns;
// `beside(step)` is called in each step for work of the vector units. With `stream`, rows are loaded so that they do not
// displace the panel from the first-level cache, where the next block finds it again.
template <TileKind kind, bool stream, typename PanelAt, typename Beside>
INTERLEAF_INLINE void multiply_tiles(const char* a, size_t row_bytes, int rows, Range steps, PanelAt panel_at,
                                     Beside beside) {
  if (rows <= kTileRows) {
    for (int step = steps.begin; step < steps.end; ++step, a += 64) {
      const char* b = panel_at(step);
      _tile_loadd(4, a, row_bytes);
      _tile_loadd(6, b, 128);
      _tile_loadd(7, b + 64, 128);
      INTERLEAF_MULTIPLY(0, 4, 6);
      INTERLEAF_MULTIPLY(1, 4, 7);
      beside(step);
    }
    return;
  }
  for (int step = steps.begin; step < steps.end; ++step, a += 64) {
    const char* b = panel_at(step);
    _tile_loadd(6, b, 128);
    INTERLEAF_LOAD_ROWS(4, a);
    INTERLEAF_MULTIPLY(0, 4, 6);
    INTERLEAF_LOAD_ROWS(5, a + kTileRows * row_bytes);
    INTERLEAF_MULTIPLY(2, 5, 6);
    _tile_loadd(7, b + 64, 128);
    INTERLEAF_MULTIPLY(1, 4, 7);
    INTERLEAF_MULTIPLY(3, 5, 7);
    beside(step);
  }
}
#undef INTERLEAF_MULTIPLY
#undef INTERLEAF_LOAD_ROWS

// Tiles 0-3 from zero, or from sums [rows, 32] that tile_store wrote.
INTERLEAF_INLINE void start_tiles(const char* sums, int rows, bool from_zero) {
  if (from_zero) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, 128);
  _tile_loadd(1, sums + 64, 128);
  if (rows <= kTileRows) return;
  _tile_loadd(2, sums + kTileRows * 128, 128);
  _tile_loadd(3, sums + kTileRows * 128 + 64, 128);
}

constexpr int kFetchSteps = 8;   // how far ahead memory is asked for when one block of rows passes over a panel
constexpr size_t kMostAhead = 128 << 10;
constexpr int kFetchBlocks = 4;  // of rows, which share the asking for the next panel

// Panels where they lie. The first rows to pass over a panel ask for what comes later in memory, as evenly as they
// can: the hardware follows one stream, but not from page to page. Asking beyond the end of a weight does no harm.
struct PackedPanels {
  const char* weight;
  size_t panel_bytes;
  int fetching_blocks;  // 1, 2 or 4; 0 if the weight is in a cache
  size_t ahead;
  const char* here = nullptr;

  PackedPanels(const void* weight, size_t panel_bytes, int rows, bool from_memory)
      : weight(static_cast<const char*>(weight)),
        panel_bytes(panel_bytes),
        fetching_blocks(!from_memory ? 0 : rows <= kBlockRows ? 1 : rows <= 2 * kBlockRows ? 2 : kFetchBlocks),
        ahead(fetching_blocks == 1 || panel_bytes > kMostAhead ? size_t{kFetchSteps} * kStepBytes : panel_bytes) {}
  INTERLEAF_MEMBER void begin(int panel, Range) { here = weight + panel_bytes * static_cast<size_t>(panel); }
  INTERLEAF_MEMBER const char* at(int step) const { return here + step * kStepBytes; }
  INTERLEAF_MEMBER void prepare(int step, int block) const {
    if (block >= fetching_blocks) return;
    const int bytes = kStepBytes / fetching_blocks;
    const char* later = at(step) + ahead + block * bytes;
    for (int i = 0; i < bytes; i += 512)
#pragma GCC unroll 8
      for (int line = 0; line < 512; line += 64) _mm_prefetch(later + i + line, _MM_HINT_T1);
  }
};

// Results that wait in memory to be finished, a few rows in each step of the next product.
struct PendingRows {
  int row, rows, panel, done;
  const float* sums;
};

// How a product is cut so that what is used again stays in a cache. Where the rows do not fit the second level, k is cut
// into slices: the rows of a slice are brought together and pass over several panels before the next slice. Sums wait in
// memory meanwhile, which changes no bit of them.
struct TileSchedule {
  int steps, rows, slices, group;  // steps of k; rows a pass; slices of k; panels that go through a slice together

  TileSchedule(size_t row_bytes, int num_rows) : steps(static_cast<int>(row_bytes / 64)), rows(kMostRows), slices(1), group(1) {
    const int fitting = static_cast<int>(kRowsCache / row_bytes) / kBlockRows * kBlockRows;
    const bool sliced = fitting < kMostRows / 4 && num_rows > 2 * kBlockRows;
    if (!sliced) {
      rows = higher(kMostRows / 2, lower(fitting, kMostRows));
      return;
    }
    slices = (steps + kSliceSteps - 1) / kSliceSteps;
    group = kPanelGroup;
  }
  Range slice(int i) const { return {steps * i / slices, steps * (i + 1) / slices}; }
  bool panel_in_first_level() const { return steps <= slices * kSliceSteps; }
};

// The rows of a slice, brought together: [rows][steps][64].
INTERLEAF_INLINE void gather_slice(const char* a, size_t row_bytes, int rows, Range slice, char* gathered) {
  const size_t bytes = static_cast<size_t>(slice.end - slice.begin) * 64;
  for (int row = 0; row < rows; ++row)
    std::memcpy(gathered + static_cast<size_t>(row) * bytes, a + static_cast<size_t>(row) * row_bytes + slice.begin * 64, bytes);
}

// y[rows, panels] through `finish(row, panel, sums)`, which gets 32 sums (integers for kInt8). `weight.at(step)` gives the
// columns of the panel that `weight.begin(panel, steps)` named; `weight.prepare(step, block)` is called beside each block of
// rows. At most kMostRows rows; `scratch` has kTileScratchBytes.
template <TileKind kind, bool stream, typename Weight, typename Finish>
INTERLEAF_INLINE void tile_gemm_pass(const char* a, size_t row_bytes, int rows, const TileSchedule& schedule, Range panels,
                                   char* scratch, Weight& weight, Finish finish) {
  const int blocks = (rows + kBlockRows - 1) / kBlockRows, slices = schedule.slices, group = schedule.group;
  char* gathered = scratch + kSumBytes;
  PendingRows pending = {0, 0, 0, 0, nullptr};
  const auto finish_some = [&](int count) __attribute__((always_inline)) {
    const int end = lower(pending.done + count, pending.rows);
    for (; pending.done < end; ++pending.done)
      finish(pending.row + pending.done, pending.panel, pending.sums + pending.done * kPanelColumns);
  };
  TileShape shape;
  for (int first = panels.begin; first < panels.end; first += group)
    for (int turn = 0; turn < slices * group; ++turn) {
      const int slice = turn / group, in_group = turn % group, panel = first + in_group;
      if (panel >= panels.end) continue;
      const Range part = schedule.slice(slice);
      const int each = (kBlockRows + part.end - part.begin - 1) / (part.end - part.begin);
      if (slices > 1 && in_group == 0) gather_slice(a, row_bytes, rows, part, gathered);
      const char* x = slices > 1 ? gathered : a;
      const size_t x_bytes = slices > 1 ? static_cast<size_t>(part.end - part.begin) * 64 : row_bytes;
      weight.begin(panel, part);
      for (int block = 0; block < blocks; ++block) {
        const int row = block * kBlockRows, count = lower(kBlockRows, rows - row);
        const int place = slices > 1 ? in_group * blocks + block : block % 2;
        char* sums = scratch + static_cast<size_t>(place) * kBlockSumBytes;
        shape.set(count, kTileDepth);
        start_tiles(sums, count, slice == 0);
        multiply_tiles<kind, stream>(
            x + static_cast<size_t>(row) * x_bytes, x_bytes, count, part,
            [&](int step) __attribute__((always_inline)) { return weight.at(step); },
            [&](int step) __attribute__((always_inline)) {
              weight.prepare(step, block);
              finish_some(each);
            });
        finish_some(kBlockRows);
        tile_store(reinterpret_cast<float*>(sums), kPanelColumns, count, true);
        if (slice == slices - 1) pending = {row, count, panel, 0, reinterpret_cast<const float*>(sums)};
      }
    }
  finish_some(kBlockRows);
}

// The whole product, in passes of rows: `weight_for(rows, first_pass)` makes the weight that a pass sees.
template <TileKind kind, typename WeightFor, typename Finish>
INTERLEAF_INLINE void tile_gemm(const void* x, size_t row_bytes, int num_rows, Range panels, char* scratch,
                                WeightFor weight_for, Finish finish) {
  const TileSchedule schedule(row_bytes, num_rows);
  for (int first = 0; first < num_rows; first += schedule.rows) {
    const int rows = lower(schedule.rows, num_rows - first);
    const char* a = static_cast<const char*>(x) + static_cast<size_t>(first) * row_bytes;
    auto weight = weight_for(rows, first == 0);
    const auto finish_row = [&](int row, int panel, const float* sums) __attribute__((always_inline)) {
      finish(first + row, panel, sums);
    };
    if (rows > kBlockRows && schedule.panel_in_first_level()) {
      tile_gemm_pass<kind, true>(a, row_bytes, rows, schedule, panels, scratch, weight, finish_row);
    } else {
      tile_gemm_pass<kind, false>(a, row_bytes, rows, schedule, panels, scratch, weight, finish_row);
    }
  }
}

}  // namespace interleaf::INTERLEAF_LEVEL

#endif
