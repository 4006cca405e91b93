// An allocator for libtorch's CPU tensors that keeps freed blocks. Training makes and drops the same large temporaries in
// every step; malloc gives them back to the kernel, which clears every page anew, or splits and merges them all day. Blocks
// of 2 MiB and more are huge pages where the kernel grants them.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

namespace {

constexpr size_t HEADER = 64;             // in front of the data, which stays aligned
constexpr size_t KEPT_FROM = 16 << 10;    // smaller blocks are malloc's
constexpr size_t MAPPED_FROM = 2 << 20;   // larger ones are maps of their own
constexpr size_t SLACK = size_t{32} << 20;

// Sizes are rounded up to an eighth of their power of two: at most 12.5% more, and steps of similar shapes meet.
size_t rounded(size_t size) {
  if (size < KEPT_FROM) return size;
  size_t step = size_t{1} << (63 - __builtin_clzll(size) - 3);
  if (size >= MAPPED_FROM && step < MAPPED_FROM / 8) step = MAPPED_FROM / 8;
  return (size + step - 1) / step * step;
}

struct Kept {
  std::mutex mutex;
  std::map<size_t, std::vector<void*>> blocks;  // free ones, by size
  size_t free_bytes = 0;
  size_t used_bytes = 0;
  size_t most_used = 0;
};

Kept& kept() {
  static Kept* all = new Kept;  // never destroyed: tensors may outlive everything else
  return *all;
}

void* fresh(size_t size) {
  if (size >= MAPPED_FROM) {
    void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return nullptr;
    madvise(block, size, MADV_HUGEPAGE);
    return block;
  }
  void* block = nullptr;
  return posix_memalign(&block, HEADER, size) == 0 ? block : nullptr;
}

void give_back(void* block, size_t size) {
  if (size >= MAPPED_FROM) munmap(block, size);
  else free(block);
}

// Gives free blocks back, the largest first, until so many bytes or fewer are left. Called with the lock held.
void shrink_free(size_t left) {
  auto& blocks = kept().blocks;
  while (kept().free_bytes > left && !blocks.empty()) {
    auto largest = std::prev(blocks.end());
    auto& [size, list] = *largest;
    while (kept().free_bytes > left && !list.empty()) {
      give_back(list.back(), size);
      list.pop_back();
      kept().free_bytes -= size;
    }
    if (list.empty()) blocks.erase(largest);
  }
}

// A free block of this size, or of up to a quarter more: batches differ in length. Called with the lock held.
void* reused(size_t& size) {
  auto& blocks = kept().blocks;
  for (auto fit = blocks.lower_bound(size); fit != blocks.end() && fit->first <= size + size / 4; ++fit) {
    if (fit->second.empty()) continue;
    void* block = fit->second.back();
    fit->second.pop_back();
    size = fit->first;
    kept().free_bytes -= size;
    return block;
  }
  return nullptr;
}

void release(void* data) {
  if (data == nullptr) return;
  void* block = static_cast<char*>(data) - HEADER;
  const size_t size = *static_cast<size_t*>(block);
  if (size < KEPT_FROM) return free(block);
  std::lock_guard<std::mutex> lock(kept().mutex);
  kept().used_bytes -= size;
  kept().free_bytes += size;
  kept().blocks[size].push_back(block);
}

struct KeepingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t wanted) override {
    if (wanted == 0) return {nullptr, nullptr, &release, c10::Device(c10::kCPU)};
    size_t size = rounded(wanted + HEADER);
    void* block = nullptr;
    if (size < KEPT_FROM) {
      block = fresh(size);
    } else {
      std::lock_guard<std::mutex> lock(kept().mutex);
      block = reused(size);
      if (block == nullptr) {
        // Used and idle together stay below what was ever used at a time, and an eighth.
        const size_t most = kept().most_used + kept().most_used / 8 + SLACK;
        const size_t needed = kept().used_bytes + size;
        shrink_free(most > needed ? most - needed : 0);
        block = fresh(size);
        if (block == nullptr) {
          shrink_free(0);
          block = fresh(size);
        }
      }
      if (block != nullptr) kept().used_bytes += size;
      kept().most_used = std::max(kept().most_used, kept().used_bytes);
    }
    TORCH_CHECK(block != nullptr, "out of memory: ", wanted, " bytes");
    *static_cast<size_t*>(block) = size;
    void* data = static_cast<char*>(block) + HEADER;
    return {data, data, &release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
};

}  // namespace

// From now on CPU tensors come from here.
extern "C" void idiolect_keep_memory() {
  static KeepingAllocator* allocator = new KeepingAllocator;
  c10::SetCPUAllocator(allocator, 1);
}
