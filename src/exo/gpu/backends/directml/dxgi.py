"""Lists the graphics adapters of Windows through DXGI, in the order in which DirectML counts them.

Source: IDXGIFactory1 and DXGI_ADAPTER_DESC1 in https://learn.microsoft.com/windows/win32/api/dxgi/, and
D3DKMTQueryAdapterInfo in .../windows-hardware/drivers/ddi/d3dkmthk/, which tells where on the PCI bus an adapter is: so
a card that CUDA has, too, is known to be the same. A COM object is a pointer to a table of functions; their places in
it are part of the interface.
"""

import ctypes
from typing import Any

import msgspec

from exo.gpu.errors import BackendUnavailableError

_FACTORY = bytes.fromhex("78ae0a776ff2ba4da829253c83d1b387")
"""IID_IDXGIFactory1, 770aae78-f26f-4dba-a829-253c83d1b387, as it lies in memory."""
_RELEASE, _ENUM_ADAPTERS, _GET_DESCRIPTION = 2, 12, 10
_NOT_FOUND = 0x887A0002
_IS_SOFTWARE = 2
_ADDRESS_INFORMATION = 6
"""KMTQAITYPE_ADAPTERADDRESS."""
_ADAPTERS_MAX = 64
_VENDORS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel", 0x4D4F4351: "qualcomm"}


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A graphics adapter.

    Attributes:
        ordinal: DirectML's number of it.
        vendor: In words, where it is known.
        dedicated_bytes: Memory of its own.
        shared_bytes: Of the host's memory that it may use.
    """

    ordinal: int
    name: str
    vendor: str
    dedicated_bytes: int
    shared_bytes: int
    pci_address: str | None = None


class _Opened(ctypes.Structure):
    _fields_ = [("luid", ctypes.c_uint32 * 2), ("handle", ctypes.c_uint32)]


class _Question(ctypes.Structure):
    _fields_ = [
        ("handle", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("answer", ctypes.c_void_p),
        ("answer_bytes", ctypes.c_uint32),
    ]


class _Description(ctypes.Structure):
    _fields_ = [
        ("description", ctypes.c_uint16 * 128),
        ("vendor_id", ctypes.c_uint32),
        ("device_id", ctypes.c_uint32),
        ("subsystem_id", ctypes.c_uint32),
        ("revision", ctypes.c_uint32),
        ("dedicated_video_bytes", ctypes.c_size_t),
        ("dedicated_system_bytes", ctypes.c_size_t),
        ("shared_system_bytes", ctypes.c_size_t),
        ("luid", ctypes.c_uint32 * 2),
        ("flags", ctypes.c_uint32),
    ]


def list_adapters(library: str = "dxgi", kernel_library: str = "gdi32") -> list[Adapter]:
    """Return the adapters, without those that compute on the processor.

    Args:
        library: DXGI's name or path.
        kernel_library: Of the library that asks the kernel about adapters.

    Raises:
        BackendUnavailableError: There is no DXGI.
    """
    factory = ctypes.c_void_p()
    try:
        failed = ctypes.CDLL(library).CreateDXGIFactory1(_FACTORY, ctypes.byref(factory))
    except (OSError, AttributeError) as error:
        raise BackendUnavailableError("DirectML is a part of Windows, and DXGI is not found here") from error
    if failed:
        raise BackendUnavailableError(
            f"Windows does not list its graphics adapters (error {failed & 0xFFFFFFFF:#x})"
        )
    found: list[Adapter] = []
    try:
        for ordinal in range(_ADAPTERS_MAX):
            adapter = ctypes.c_void_p()
            result = _method(factory, _ENUM_ADAPTERS, ctypes.c_uint32, ctypes.c_void_p)(
                factory, ordinal, ctypes.byref(adapter)
            )
            if result & 0xFFFFFFFF == _NOT_FOUND:
                break
            if result or not adapter:
                continue
            try:
                described = _described(adapter, ordinal, kernel_library)
            finally:
                _method(adapter, _RELEASE)(adapter)
            found += [] if described is None else [described]
    finally:
        _method(factory, _RELEASE)(factory)
    return found


def _described(adapter: ctypes.c_void_p, ordinal: int, kernel_library: str) -> Adapter | None:
    description = _Description()
    failed = _method(adapter, _GET_DESCRIPTION, ctypes.c_void_p)(adapter, ctypes.byref(description))
    if failed or description.flags & _IS_SOFTWARE:
        return None
    name = bytes(description.description).decode("utf-16-le", "replace").partition("\0")[0]
    return Adapter(
        ordinal=ordinal,
        name=name.strip() or "GPU",
        vendor=_VENDORS.get(description.vendor_id, "unknown"),
        dedicated_bytes=description.dedicated_video_bytes,
        shared_bytes=description.shared_system_bytes,
        pci_address=_pci_address(description.luid, kernel_library),
    )


def _pci_address(luid: Any, library: str) -> str | None:
    """Return where an adapter is on the bus, by the number that it has until the next start of Windows."""
    opened = _Opened(luid, 0)
    place = (ctypes.c_uint32 * 3)()
    try:
        kernel = ctypes.CDLL(library)
        if kernel.D3DKMTOpenAdapterFromLuid(ctypes.byref(opened)):
            return None
        question = _Question(
            opened.handle, _ADDRESS_INFORMATION, ctypes.addressof(place), ctypes.sizeof(place)
        )
        failed = kernel.D3DKMTQueryAdapterInfo(ctypes.byref(question))
        kernel.D3DKMTCloseAdapter(ctypes.byref(ctypes.c_uint32(opened.handle)))
    except (OSError, AttributeError):
        return None
    bus, device, function = place
    return None if failed or bus > 0xFF else f"0000:{bus:02x}:{device:02x}.{function:x}"


def _method(one: ctypes.c_void_p, place: int, *arguments: Any) -> Any:
    """Return a function of a COM object. On 64-bit Windows there is one way of calling."""
    table = ctypes.cast(one, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *arguments)(table[place] or 0)
