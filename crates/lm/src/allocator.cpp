// An allocator for libtorch's CPU tensors that keeps freed blocks. Training makes and drops the same large temporaries in
// every step; malloc gives them back to the kernel, which clears every page anew, or splits and merges them all day. Blocks
// of 2 MiB and more are huge pages where the kernel grants them.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

constexpr size_t HEADER = 64;             // in front of the data, which stays aligned
constexpr size_t KEPT_FROM = 16 << 10;    // smaller blocks are malloc's
constexpr size_t MAPPED_FROM = 2 << 20;   // larger ones are maps of their own
constexpr size_t ALWAYS_KEPT = size_t{4} << 30;  // free bytes that are kept whatever is in use

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

// Called with the lock held.
void release_free() {
  for (auto& [size, blocks] : kept().blocks) {
    for (void* block : blocks) give_back(block, size);
    blocks.clear();
  }
  kept().free_bytes = 0;
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
    const size_t size = rounded(wanted + HEADER);
    void* block = nullptr;
    if (size < KEPT_FROM) {
      block = fresh(size);
    } else {
      std::lock_guard<std::mutex> lock(kept().mutex);
      auto& list = kept().blocks[size];
      if (!list.empty()) {
        block = list.back();
        list.pop_back();
        kept().free_bytes -= size;
      } else {
        // What lies idle must not outgrow what is in use.
        if (kept().free_bytes > ALWAYS_KEPT && kept().free_bytes > kept().used_bytes / 2) release_free();
        block = fresh(size);
        if (block == nullptr) {
          release_free();
          block = fresh(size);
        }
      }
      if (block != nullptr) kept().used_bytes += size;
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
