// Two CUDA devices that do nothing, for a torch without CUDA: guards, streams and events are empty, and pinned memory is
// ordinary memory that is remembered. What runs on the tensors is up to Python (pretend.py).
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

#include <map>
#include <mutex>

using namespace c10;
using Address = uintptr_t;

namespace {
constexpr DeviceIndex DEVICES = 2;
thread_local DeviceIndex current = 0;
std::map<Address, size_t> pinned;
std::mutex guarded;

struct PinnedAllocator final : Allocator {
  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> hold(guarded);
      pinned.erase(reinterpret_cast<Address>(memory));
    }
    free_cpu(memory);
  }
  DataPtr allocate(size_t bytes) override {
    void* memory = alloc_cpu(bytes);
    std::lock_guard<std::mutex> hold(guarded);
    if (memory) pinned[reinterpret_cast<Address>(memory)] = bytes;
    return {memory, memory, &release, Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} allocator;

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  Device exchangeDevice(Device to) const override {
    Device from = getDevice();
    current = to.index();
    return from;
  }
  void setDevice(Device to) const override { current = to.index(); }
  void uncheckedSetDevice(Device to) const noexcept override { current = to.index(); }
  Stream getStream(Device of) const noexcept override { return Stream(Stream::DEFAULT, of); }
  Stream exchangeStream(Stream of) const noexcept override { return of; }
  DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}  // namespace

struct CUDAHooks : at::CUDAHooksInterface {  // the registry wants this very name
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  int getNumGPUs() const override { return DEVICES; }
  DeviceIndex deviceCount() const override { return DEVICES; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex current_device() const override { return current; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  Allocator* getPinnedMemoryAllocator() const override { return &allocator; }
  bool isPinnedPtr(const void* memory) const override {
    std::lock_guard<std::mutex> hold(guarded);
    auto after = pinned.upper_bound(reinterpret_cast<Address>(memory));
    if (after == pinned.begin()) return false;
    auto block = std::prev(after);
    return reinterpret_cast<Address>(memory) < block->first + block->second;
  }
};
namespace at {
using ::CUDAHooks;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
