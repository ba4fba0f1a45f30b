// What a kernel is given, and the table of kernels of one instruction level.
//
// Letters in shapes: T tokens of the step, S sequences, L rows of logits, H query heads, G key-value heads,
// D values a head (Dp: rounded up to 16), V words, N outputs and K inputs of a linear layer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace interleaf {

enum class DType : int32_t { kF32 = 0, kBf16 = 1, kInt8 = 2 };

// How a weight is stored. kInt8: s8 with a scale a column, rotated (see kRotationRun) like its activations. The others:
// 4 or 8 unsigned bits, with a float16 scale for every 32 values of a column: weight = scale * (value - zero), zero being 8 or 128; the Min formats have a float16
// minimum as well: weight = scale * value + minimum.
enum class Format : int32_t { kInt8 = 0, kGroup4 = 1, kGroup4Min = 2, kGroup8 = 3, kGroup8Min = 4 };
constexpr bool has_nibbles(Format format) { return format == Format::kGroup4 || format == Format::kGroup4Min; }
constexpr bool has_minimum(Format format) { return format == Format::kGroup4Min || format == Format::kGroup8Min; }
constexpr int zero_of(Format format) { return format == Format::kGroup4 ? 8 : format == Format::kGroup8 ? 128 : 0; }
constexpr int kGroupSize = 32;
constexpr int kInt8Depth = 64;  // k of int8 weights is padded to this, the depth of a tile

// What is rounded with one scale for many values is rotated before: values are replaced by their sums and differences, so
// that a large one is shared out over many (Ashkboos et al. 2024). First halves of the row are paired, then its quarters,
// as far as these are whole runs of 16; then, within each run, values 8, 4, 2 and 1 apart. A row that is no number of runs
// stays as it is. A product of rotated rows is the rows' product times 2 for each step.
constexpr int kRotationRun = 16;
constexpr bool rotates(int k) { return k % kRotationRun == 0; }
constexpr int rotation_halvings(int k) { return k % (4 * kRotationRun) == 0 ? 2 : k % (2 * kRotationRun) == 0 ? 1 : 0; }

constexpr int kPanelColumns = 32;   // columns of a weight that lie together
constexpr int kKeyGroup = 16;       // keys whose scores fill one register
constexpr int kAttentionChunk = 256;  // keys of one softmax: cuts lie at multiples of this in every sequence

// The part of one thread in a job, and memory of its own to work in.
struct Worker {
  int thread;
  int num_threads;
  char* scratch;
};
constexpr size_t kScratchBytes = size_t{8} << 20;

// y = x . W^T (+ bias), then by `epilogue`: stored; added to y; or activation(gate) * up of interleaved columns.
// Every output is one sum over k in ascending order, whatever the number of rows or threads.
enum class Epilogue : int32_t { kStore = 0, kAdd = 1, kSiluMul = 2, kGeluMul = 3 };
constexpr bool is_gated(Epilogue epilogue) { return epilogue == Epilogue::kSiluMul || epilogue == Epilogue::kGeluMul; }
struct LinearArgs {
  const void* x;       // [rows, K], x_type
  const void* weight;  // panels of 32 columns: bf16 [N/32][K/2][32][2], f32 [N/32][K][32]
  const float* bias;   // [N] or null
  void* y;             // [rows, N] (gated: [rows, N/2]), y_type
  int32_t n, k;
  DType x_type, weight_type, y_type;
  Epilogue epilogue;
};

// Activations in 8 bits. For kInt8 one scale a row: value = round(rotated x / scale) + 128, unsigned. For the others one scale
// for 32 values, signed, with the sum of each group's values.
struct QuantizeArgs {
  const void* x;    // [rows, K], x_type
  uint8_t* y;       // [rows, k_padded]
  float* scales;    // [rows, groups]
  int32_t* sums;    // [rows, groups]; unused for kInt8
  int32_t k, k_padded, groups;
  DType x_type;
  Format format;
};

// linear() on quantized weights and activations. Sums of products are exact integers (a group's, or a row's); groups are
// added in ascending order.
struct LinearQuantizedArgs {
  const uint8_t* x;
  const float* x_scales;
  const int32_t* x_sums;
  const uint8_t* weight;  // 8 bits: [N/32][K/4][32][4]; 4 bits: [N/32][K/8][2][64], low nibbles k 0-3, high 4-7
  const float* scales;    // kInt8: [N]
  const int32_t* compensation;   // kInt8: [N], 128 * sum of the column
  const uint16_t* group_scales;  // the others: float16 [N/32][K/32][32]
  const uint16_t* group_minima;  // the Min formats: the same
  const float* bias;
  void* y;
  int32_t n, k_padded, groups;
  DType y_type;
  Epilogue epilogue;
  Format format;
};

// y[i] = x[row_index[i]], rows of any type.
struct TakeRowsArgs {
  const char* x;  // [T, row_bytes]
  char* y;        // [L, row_bytes]
  const int32_t* row_index;
  int32_t row_bytes;
};

// y = x / sqrt(mean(x^2) + eps) * weight, added to what is in y (f32) with `add`. (Zhang & Sennrich 2019.)
struct RmsNormArgs {
  const float* x;  // [rows, width]
  const float* weight;
  void* y;
  int32_t width;
  float eps;
  DType y_type;
  bool add;
};

// x = cap * tanh(x / cap), in place. (Gemma 2, 2024)
struct SoftCapArgs {
  float* x;  // [rows, width]
  int32_t width;
  float cap;
};

// y[i] = scale * row ids[i] of a table that is packed as a linear weight with one row a column.
struct EmbeddingArgs {
  const int32_t* ids;
  const void* table;
  float* y;  // [T, width]
  int32_t width;
  float scale;
  DType table_type;
};

// The same of a quantized table.
struct EmbeddingQuantizedArgs {
  const int32_t* ids;
  LinearQuantizedArgs table;  // its weight, scales, minima, k_padded, groups and format
  float* y;
  int32_t width;
  float scale;
};

// One layer's paged keys and values. Addresses are of block 0; a block's are `block_stride` bytes behind those of the
// block before. int8: value = stored * scale, one scale a token and head.
struct PagedCache {
  char* keys;    // [G][block/16] then bf16 and int8 [Dp/2][16][2], f32 [Dp][16]
  char* values;  // [G] then bf16 and int8 [block/2][Dp][2], f32 [block][Dp]
  char* key_scales;    // int8: f32 [G][block]
  char* value_scales;  // the same
  int64_t block_stride;
  int32_t num_kv_heads, block_size;
  DType type;
};

// Splits qkv into heads, normalizes q and k (where weights are given), rotates them, writes q to `q` and k and v
// to the paged cache. Rotation pairs dimension i with i + rotary_dim / 2. (Su et al. 2021.)
struct RotaryCacheArgs {
  const float* qkv;  // [T, (H + 2 G) D]
  void* q;           // [T, H D], type
  PagedCache cache;
  const float* q_norm;
  const float* k_norm;
  const float* cos_sin;  // [positions, rotary_dim]: the cosines, then the sines
  const int32_t* positions;
  const int32_t* slots;  // block * block_size + offset
  int32_t num_heads, head_dim, rotary_dim;
  float eps;
  DType type;
};

// Causal attention of each sequence's new tokens over its paged cache (Kwon et al. 2023), prefill and decode rows
// alike. A sequence is cut at multiples of kAttentionChunk keys; each chunk is a softmax of its own and chunks are
// merged in ascending order (Dao 2023, Milakov & Gimelshein 2018), so that a row's sums do not depend on what is
// computed beside it.
//
// Where a sequence falls to several threads they leave the states of its chunks in `partials`, zeroed at first and
// shared by all calls of a program: attention_partials_bytes() for contexts of max_chunks.
constexpr int kPartialRows = 32;           // most rows (tokens x heads of a group) of a sequence that is cut
constexpr int kPartialCounterBytes = 64;
constexpr size_t attention_partials_bytes(int num_threads, int max_chunks, int head_dim) {
  const size_t state = static_cast<size_t>(kPartialRows) * static_cast<size_t>(2 + (head_dim + 15) / 16 * 16) * 4;
  return static_cast<size_t>(num_threads) * (kPartialCounterBytes + (static_cast<size_t>(max_chunks) + 1) * state);
}

// Sequences that follow one another may share their first chunks: the same tokens, in the same blocks. A pass of its
// own, `attention_shared`, has the queries of such a run look at them together, and leaves what each row found in
// `shared_states`; `attention` goes on from there. Without a window only.
constexpr int kMostShared = 1024;  // the sum over all runs: tokens x chunks
constexpr size_t attention_shared_bytes(int num_heads, int num_kv_heads, int head_dim) {
  // A run of two tokens or more, rounded up to 16 rows a head, has at most 8 rows a token more.
  const size_t rows = static_cast<size_t>(num_heads + 8 * num_kv_heads);
  return kMostShared * rows * static_cast<size_t>(2 + (head_dim + 15) / 16 * 16) * 4;
}

struct AttentionArgs {
  const void* q;  // [T, H D], type
  void* y;        // [T, H D], type
  PagedCache cache;
  void* partials;
  float* shared_states;
  const int32_t* shared_chunks;    // [S]: how many are shared, with the sequences of its run; null for none ever
  const int32_t* shared_with;      // [S]: the first sequence of its run
  const int32_t* block_tables;     // [rows of the batch, block_table_stride]
  const int32_t* sequence_rows;    // [S]: row of the batch
  const int32_t* query_start;      // [S + 1]: first token of each sequence in T
  const int32_t* context_lengths;  // [S]: keys of each sequence, this step's included
  int64_t block_table_stride;
  int32_t num_heads, head_dim;
  int32_t max_chunks;
  int32_t window;  // keys a query sees, itself included; 0 is all
  float scale;
  float soft_cap;  // scores become soft_cap * tanh(scale * q.k / soft_cap); 0 is none
  DType type;
};

// How to pick each row's next token. Noise is one uniform number per (seed, position).
struct SampleArgs {
  const float* logits;  // [L, V]
  const float* temperatures;  // [L]; 0 is greedy
  const int32_t* top_k;       // [L]; 0 keeps all
  const float* top_p;         // [L]
  const float* min_p;         // [L]
  const uint64_t* seeds;      // [L]
  const int32_t* positions;   // [L]: of the token that is sampled
  int32_t* tokens;            // [L]
  int32_t vocab_size;
};

// Log-probabilities of a chosen token and of the likeliest ones, of selected rows.
struct LogprobsArgs {
  const float* logits;       // [L, V]
  const int32_t* rows;       // [n]: rows of logits
  const int32_t* tokens;     // [n]: chosen token of each
  const int32_t* num_top;    // [n]: how many of the likeliest
  float* chosen_logprobs;    // [n]
  int32_t* chosen_ranks;     // [n], from 1
  int32_t* top_tokens;       // [n, top_stride], likeliest first, ties by lower token id
  float* top_logprobs;       // [n, top_stride]
  int32_t top_stride;
  int32_t vocab_size;
};

struct KernelTable {
  float (*read_all)(const float* data, size_t count);  // a plain read, for measuring memory
  void (*linear)(const LinearArgs&, int rows, const Worker&);
  void (*quantize)(const QuantizeArgs&, int rows, const Worker&);
  void (*linear_quantized)(const LinearQuantizedArgs&, int rows, const Worker&);
  void (*take_rows)(const TakeRowsArgs&, int rows, const Worker&);
  void (*rms_norm)(const RmsNormArgs&, int rows, const Worker&);
  void (*soft_cap)(const SoftCapArgs&, int rows, const Worker&);
  void (*embedding)(const EmbeddingArgs&, int rows, const Worker&);
  void (*embedding_quantized)(const EmbeddingQuantizedArgs&, int rows, const Worker&);
  void (*rotary_cache)(const RotaryCacheArgs&, int rows, const Worker&);
  void (*attention_shared)(const AttentionArgs&, int num_sequences, const Worker&);
  void (*attention)(const AttentionArgs&, int num_sequences, const Worker&);
  void (*sample)(const SampleArgs&, int rows, const Worker&);
  void (*logprobs)(const LogprobsArgs&, int rows, const Worker&);
};

#define INTERLEAF_DECLARE_TABLE(level) \
  namespace level {                    \
  extern const KernelTable kTable;     \
  }
INTERLEAF_DECLARE_TABLE(portable)
INTERLEAF_DECLARE_TABLE(avx2)
INTERLEAF_DECLARE_TABLE(avx2_vnni)
INTERLEAF_DECLARE_TABLE(avx512)
INTERLEAF_DECLARE_TABLE(avx512_vnni)
INTERLEAF_DECLARE_TABLE(avx512_bf16)
INTERLEAF_DECLARE_TABLE(amx)
#undef INTERLEAF_DECLARE_TABLE

}  // namespace interleaf
