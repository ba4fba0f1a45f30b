// The merges of a SentencePiece vocabulary, which lists pieces and scores only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace interleaf {

// SentencePiece merges whichever neighbours form the piece with the best score: all pairs of pieces that form one, best
// first, then by the ids of the left and the right one. Pieces that are not `usable` are formed by no merge.
//
// `names` tells what id a string has; `pieces` are the strings that are formed. All have the same length.
std::vector<std::pair<int32_t, int32_t>> merges_from_scores(const std::vector<std::string>& pieces,
                                                            const std::vector<std::string>& names,
                                                            const std::vector<double>& scores,
                                                            const std::vector<bool>& usable);

}  // namespace interleaf
