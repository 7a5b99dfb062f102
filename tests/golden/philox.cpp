// Writes the words whose hash `runtime/src/noise/philox.rs` holds, by torch's own engine (headers of torch 2.14.1):
// g++ -std=c++20 -O1 -I $TORCH/include philox.cpp -L $TORCH/lib -lc10 -Wl,-rpath,$TORCH/lib && ./a.out | sha256sum
#include <ATen/core/PhiloxRNGEngine.h>

#include <cstdio>

int main() {
  for (uint64_t seed : {uint64_t(0), uint64_t(42), (uint64_t(1) << 32) + 5, ~uint64_t(0)})
    for (uint64_t call = 0; call < 2; call++)
      for (uint64_t i = 0; i < 500000; i++) {
        at::Philox4_32 engine(seed, i, call);
        uint32_t words[4];
        for (uint32_t& word : words) word = engine();
        fwrite(words, 4, 4, stdout);
      }
}
