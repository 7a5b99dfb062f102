//! A plugin of ONNX Runtime, for tests: its device is this machine's processor, and it takes no node of any graph. The interface is
//! version 23 of `onnxruntime_ep_c_api.h`.

#![expect(unsafe_code, reason = "ONNX Runtime calls plugins through C")]

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use ort_sys::{OrtApi, OrtApiBase, OrtEpDevice, OrtHardwareDevice, OrtHardwareDeviceType};

const VERSION: u32 = 23;
const NAME: &std::ffi::CStr = c"IdleExecutionProvider";

/// Nothing went wrong.
const FINE: Status = ptr::null_mut();

type Status = *mut c_void;
type Devices = *const *const OrtHardwareDevice;

/// What a plugin may leave out.
type Absent = *const c_void;
const ABSENT: Absent = ptr::null();

/// `OrtEpFactory`.
#[repr(C)]
struct Factory {
    version: u32,
    name: extern "C" fn(*const Self) -> *const c_char,
    vendor: extern "C" fn(*const Self) -> *const c_char,
    devices: unsafe extern "C" fn(
        *mut Self,
        Devices,
        usize,
        *mut *mut OrtEpDevice,
        usize,
        *mut usize,
    ) -> Status,
    create: unsafe extern "C" fn(
        *mut Self,
        Devices,
        *const c_void,
        usize,
        *const c_void,
        *const c_void,
        *mut *mut Provider,
    ) -> Status,
    release: unsafe extern "C" fn(*mut Self, *mut Provider),
    vendor_id: extern "C" fn(*const Self) -> u32,
    version_text: extern "C" fn(*const Self) -> *const c_char,
    validate_compiled_model: Absent,
    create_allocator: Absent,
    release_allocator: Absent,
    create_data_transfer: unsafe extern "C" fn(*mut Self, *mut *mut c_void) -> Status,
    is_stream_aware: extern "C" fn(*const Self) -> bool,
    create_sync_stream: Absent,
}

/// `OrtEp`.
#[repr(C)]
struct Provider {
    version: u32,
    name: extern "C" fn(*const Self) -> *const c_char,
    capability: extern "C" fn(*mut Self, *const c_void, *mut c_void) -> Status,
    compile: Absent,
    release_compiled: Absent,
    optional: [Absent; 8],
}

/// The beginning of `OrtEpApi`.
#[repr(C)]
struct EpApi {
    create_device: unsafe extern "C" fn(
        *mut Factory,
        *const OrtHardwareDevice,
        *const c_void,
        *const c_void,
        *mut *mut OrtEpDevice,
    ) -> Status,
}

static API: AtomicPtr<OrtApi> = AtomicPtr::new(ptr::null_mut());

extern "C" fn name(_: *const Factory) -> *const c_char {
    NAME.as_ptr()
}

extern "C" fn vendor(_: *const Factory) -> *const c_char {
    c"tests".as_ptr()
}

extern "C" fn vendor_id(_: *const Factory) -> u32 {
    0
}

extern "C" fn version_text(_: *const Factory) -> *const c_char {
    c"0.1.0".as_ptr()
}

extern "C" fn is_stream_aware(_: *const Factory) -> bool {
    false
}

/// Nothing has to be moved to a processor.
unsafe extern "C" fn create_data_transfer(_: *mut Factory, transfer: *mut *mut c_void) -> Status {
    // SAFETY: it is a place for the result.
    unsafe { *transfer = ptr::null_mut() };
    FINE
}

unsafe extern "C" fn devices(
    factory: *mut Factory,
    found: Devices,
    count: usize,
    ours: *mut *mut OrtEpDevice,
    most: usize,
    number: *mut usize,
) -> Status {
    // SAFETY: ONNX Runtime's pointers are valid for the lengths that it says, and `API` was set before it asked for a factory.
    unsafe {
        *number = 0;
        let api = &*API.load(Ordering::Acquire);
        let ep_api = &*(api.GetEpApi)().cast::<EpApi>();
        for i in 0..count.min(most) {
            let device = *found.add(i);
            if (api.HardwareDevice_Type)(device) == OrtHardwareDeviceType::OrtHardwareDeviceType_CPU
            {
                let to = ours.add(*number);
                let status = (ep_api.create_device)(factory, device, ptr::null(), ptr::null(), to);
                if !status.is_null() {
                    return status;
                }
                *number += 1;
            }
        }
    }
    FINE
}

unsafe extern "C" fn create(
    _: *mut Factory,
    _: Devices,
    _: *const c_void,
    _: usize,
    _: *const c_void,
    _: *const c_void,
    provider: *mut *mut Provider,
) -> Status {
    let new = Box::new(Provider {
        version: VERSION,
        name: provider_name,
        capability,
        compile: ABSENT,
        release_compiled: ABSENT,
        optional: [ABSENT; 8],
    });
    // SAFETY: it is a place for the result.
    unsafe { *provider = Box::into_raw(new) };
    FINE
}

unsafe extern "C" fn release(_: *mut Factory, provider: *mut Provider) {
    // SAFETY: `create` made it.
    drop(unsafe { Box::from_raw(provider) });
}

extern "C" fn provider_name(_: *const Provider) -> *const c_char {
    NAME.as_ptr()
}

/// Names no node.
extern "C" fn capability(_: *mut Provider, _: *const c_void, _: *mut c_void) -> Status {
    FINE
}

/// ONNX Runtime calls it when it loads the library.
///
/// # Safety
/// As `onnxruntime_ep_c_api.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CreateEpFactories(
    _: *const c_char,
    base: *const OrtApiBase,
    _: *const c_void,
    factories: *mut *mut c_void,
    _: usize,
    count: *mut usize,
) -> *mut c_void {
    let factory = Box::new(Factory {
        version: VERSION,
        name,
        vendor,
        devices,
        create,
        release,
        vendor_id,
        version_text,
        validate_compiled_model: ABSENT,
        create_allocator: ABSENT,
        release_allocator: ABSENT,
        create_data_transfer,
        is_stream_aware,
        create_sync_stream: ABSENT,
    });
    // SAFETY: there is room for one factory at least.
    unsafe {
        API.store(((*base).GetApi)(VERSION).cast_mut(), Ordering::Release);
        *factories = Box::into_raw(factory).cast();
        *count = 1;
    }
    FINE
}

/// ONNX Runtime calls it when it needs no more providers.
///
/// # Safety
/// As `onnxruntime_ep_c_api.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ReleaseEpFactory(factory: *mut c_void) -> *mut c_void {
    // SAFETY: `CreateEpFactories` made it.
    drop(unsafe { Box::from_raw(factory.cast::<Factory>()) });
    FINE
}
