#include "merges.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <tuple>
#include <unordered_map>

namespace interleaf {

namespace {

struct Merge {
  double score;
  int32_t left, right;
};

// Whether a character of UTF-8 begins with this byte.
bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace

std::vector<std::pair<int32_t, int32_t>> merges_from_scores(const std::vector<std::string>& pieces,
                                                            const std::vector<std::string>& names,
                                                            const std::vector<double>& scores,
                                                            const std::vector<bool>& usable) {
  std::unordered_map<std::string_view, int32_t> ids(2 * names.size());
  for (size_t i = 0; i < names.size(); ++i) ids[names[i]] = static_cast<int32_t>(i);
  std::vector<Merge> merges;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!usable[i]) continue;
    const std::string_view piece = pieces[i];
    // A file's NaN must not upset the order.
    const double score = scores[i] == scores[i] ? scores[i] : -std::numeric_limits<double>::infinity();
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      if (!begins_character(piece[cut])) continue;
      const auto left = ids.find(piece.substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(piece.substr(cut));
      if (right != ids.end()) merges.push_back({score, left->second, right->second});
    }
  }
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(b.score, a.left, a.right) < std::tie(a.score, b.left, b.right);
  });
  std::vector<std::pair<int32_t, int32_t>> pairs;
  pairs.reserve(merges.size());
  for (const Merge& merge : merges) pairs.emplace_back(merge.left, merge.right);
  return pairs;
}

}  // namespace interleaf
