"""The table of all routes: method, path, required access and endpoint. There are no other routes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from protocol.control.check_in import CHECK_IN_PATH
from sender.api.bodies.csv_download import CSV_TYPE
from sender.api.bodies.event_stream import EVENTS_TYPE
from sender.api.guard.auth import Access
from sender.api.guard.guarded_route import Body, Endpoint, Operation, Repeat
from sender.api.routes import (
    agents,
    boots,
    captures,
    casts,
    dashboard,
    events,
    image_exports,
    image_files,
    image_requests,
    images,
    machines,
    patches,
    records,
    rooms,
    schedules,
    server,
    session,
    tokens,
    wakes,
)
from sender.store.records.boots import BOOT_PATH

_OPEN, _VIEW, _OPERATE, _MACHINE = Access.OPEN, Access.VIEW, Access.OPERATE, Access.MACHINE
_CREATED, _ACCEPTED, _NO_CONTENT = HTTPStatus.CREATED, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT
_CONFLICT = (HTTPStatus.CONFLICT,)
_UPLOAD = (HTTPStatus.CONFLICT, HTTPStatus.GONE)
_METRICS_TYPE = "text/plain"

TAGS: Final = {
    "server": "The daemon, and logging in.",
    "images": "The image library.",
    "rooms": "Rooms: named sets of machines.",
    "machines": "Machines, online or not.",
    "patches": "Settings of single machines, written with the image: templates of rooms, variables of machines.",
    "captures": "Images made of machines' disks: planned → uploading → proving → complete, failed or cancelled.",
    "casts": "One image to one room: planned → gathering → casting → tail → done, failed or cancelled.",
    "wakes": "Wakes: machines switched on by Wake-on-LAN.",
    "schedules": "Schedules: casts that are planned repeatedly.",
    "tokens": "API tokens and their roles.",
    "records": "History of casts, and the audit of all changes.",
    "live": "Live state as server-sent events.",
    "agents": "Check-ins of the agents on machines, and requests that technicians make there.",
    "boots": "Boots over the network.",
}


def _read(
    path: str,
    endpoint: Endpoint,
    tag: str,
    access: Access = _VIEW,
    *,
    own_path: bool = False,
    media_type: str = "application/json",
    problems: tuple[HTTPStatus, ...] = (),
) -> Operation:
    return Operation(
        "GET", path, access, endpoint, tag, own_path=own_path, media_type=media_type, problems=problems
    )


def _create(path: str, endpoint: Endpoint, tag: str, repeat: Repeat = Repeat.SAME_RESPONSE) -> Operation:
    return Operation(
        "POST",
        path,
        _OPERATE,
        endpoint,
        tag,
        _CREATED,
        Body.JSON,
        repeat,
        problems=_CONFLICT,
    )


def _change(path: str, endpoint: Endpoint, tag: str) -> Operation:
    return Operation("PATCH", path, _OPERATE, endpoint, tag, body=Body.JSON, problems=_CONFLICT)


def _put(path: str, endpoint: Endpoint, tag: str) -> Operation:
    return Operation("PUT", path, _OPERATE, endpoint, tag, body=Body.JSON, problems=_CONFLICT)


def _remove(path: str, endpoint: Endpoint, tag: str) -> Operation:
    return Operation("DELETE", path, _OPERATE, endpoint, tag, _NO_CONTENT, problems=_CONFLICT)


def _upload(
    path: str, endpoint: Endpoint, body: Body = Body.JSON, status: HTTPStatus = HTTPStatus.OK
) -> Operation:
    return Operation("POST", path, Access.CAPTURE, endpoint, "agents", status, body, problems=_UPLOAD)


def _order(
    path: str, endpoint: Endpoint, tag: str, status: HTTPStatus = HTTPStatus.OK, body: Body = Body.NONE
) -> Operation:
    return Operation("POST", path, _OPERATE, endpoint, tag, status, body, problems=_CONFLICT)


OPERATIONS: Final[tuple[Operation, ...]] = (
    _read("/server", server.get_server, "server"),
    Operation("POST", "/session", _OPEN, session.sign_in, "server", body=Body.JSON,
              problems=(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)),
    Operation("DELETE", "/session", _OPEN, session.sign_out, "server", _NO_CONTENT),
    Operation("POST", "/session/codes", _VIEW, session.create_login_code, "server", _CREATED),
    _read("/openapi.json", server.get_document, "server", _OPEN),
    _read("/images", images.list_images, "images"),
    _create("/images", images.add_image, "images"),
    _order("/images/scan", images.scan_images, "images", _ACCEPTED),
    _read("/images/prune", images.preview_pruning, "images"),
    _order("/images/prune", images.prune_images, "images", body=Body.JSON),
    _read("/images/uploads", image_files.list_uploads, "images"),
    _create("/images/uploads", image_files.add_upload, "images"),
    _read("/images/uploads/{upload_id}", image_files.get_upload, "images"),
    _remove("/images/uploads/{upload_id}", image_files.remove_upload, "images"),
    Operation("PUT", "/images/uploads/{upload_id}/content", _OPERATE, image_files.put_upload_part, "images",
              body=Body.BATCH, problems=_CONFLICT),
    _read("/images/exports", image_exports.list_exports, "images"),
    _read("/images/exports/{export_id}", image_exports.get_export, "images"),
    _remove("/images/exports/{export_id}", image_exports.remove_export, "images"),
    Operation("GET", "/images/exports/{export_id}/file", _OPERATE, image_exports.download_export, "images",
              media_type="application/octet-stream", problems=_CONFLICT),
    _read("/images/{image_id}", images.get_image, "images"),
    _change("/images/{image_id}", images.change_image, "images"),
    _remove("/images/{image_id}", images.forget_image, "images"),
    Operation("GET", "/images/{image_id}/file", _OPERATE, image_files.download_image, "images",
              media_type="application/octet-stream", problems=_CONFLICT),
    _create("/images/{image_id}/exports", image_exports.add_export, "images"),
    _read("/images/{image_id}/contents", images.get_image_contents, "images"),
    _read("/images/{image_id}/diff", images.diff_images, "images", problems=_CONFLICT),
    _order("/images/{image_id}/fetch", images.fetch_image, "images", _ACCEPTED),
    _read("/images/{image_id}/signature", images.get_signature, "images"),
    _order("/images/{image_id}/sign", images.sign_image, "images", body=Body.JSON),
    _read("/rooms", rooms.list_rooms, "rooms"),
    _create("/rooms", rooms.add_room, "rooms"),
    _read("/rooms/{room_id}", rooms.get_room, "rooms"),
    _change("/rooms/{room_id}", rooms.change_room, "rooms"),
    _remove("/rooms/{room_id}", rooms.remove_room, "rooms"),
    _order("/rooms/{room_id}/import", rooms.import_machines, "rooms", body=Body.CSV),
    _read("/rooms/{room_id}/live", rooms.watch_room, "rooms"),
    _read("/rooms/{room_id}/template", patches.get_room_template, "patches", _OPERATE),
    _put("/rooms/{room_id}/template", patches.put_room_template, "patches"),
    _remove("/rooms/{room_id}/template", patches.remove_room_template, "patches"),
    _order("/rooms/{room_id}/template/preview", patches.preview_room_template, "patches", body=Body.JSON),
    _order("/rooms/{room_id}/variables/import", patches.import_variables, "patches", body=Body.CSV),
    _read("/rooms/{room_id}/patch-sets", patches.list_patch_sets, "patches"),
    Operation("PUT", "/rooms/{room_id}/patch-sets", _OPERATE, patches.upload_patch_set, "patches",
              body=Body.BATCH, problems=_CONFLICT),
    _remove("/rooms/{room_id}/patch-sets/{image_id}", patches.remove_patch_set, "patches"),
    _read("/machines", machines.list_machines, "machines"),
    _create("/machines", machines.add_machine, "machines"),
    _read("/machines.csv", machines.download_machines, "machines", media_type=CSV_TYPE),
    _read("/machines/{machine_id}", machines.get_machine, "machines"),
    _change("/machines/{machine_id}", machines.change_machine, "machines"),
    _remove("/machines/{machine_id}", machines.remove_machine, "machines"),
    Operation("POST", "/machines/{machine_id}/approve", _OPERATE, machines.approve_machine, "machines",
              body=Body.JSON, problems=_CONFLICT),
    _order("/machines/{machine_id}/revoke", machines.revoke_machine, "machines"),
    _order("/machines/{machine_id}/readmit", machines.readmit_machine, "machines"),
    _read("/machines/{machine_id}/hardware", machines.get_machine_hardware, "machines"),
    _read("/machines/{machine_id}/history", machines.list_machine_history, "machines"),
    _read("/machines/{machine_id}/variables", patches.get_machine_variables, "patches", _OPERATE),
    _put("/machines/{machine_id}/variables", patches.put_machine_variables, "patches"),
    _read("/machines/{machine_id}/images", image_requests.list_machine_images, "agents", _MACHINE),
    Operation("POST", "/machines/{machine_id}/requests", _MACHINE, image_requests.request_image, "agents",
              _CREATED, Body.JSON, problems=_CONFLICT),
    _order("/machines/{machine_id}/requests/approve", image_requests.approve_image_request, "machines",
           _CREATED, Body.JSON),
    _order("/machines/{machine_id}/requests/decline", image_requests.decline_image_request, "machines",
           body=Body.JSON),
    _read("/machines/{machine_id}/requests/{code}", image_requests.get_image_request, "agents", _MACHINE),
    _create("/machines/{machine_id}/capture", captures.add_capture, "captures"),
    _read("/captures", captures.list_captures, "captures"),
    _read("/captures/{capture_id}", captures.get_capture, "captures"),
    _order("/captures/{capture_id}/cancel", captures.cancel_capture, "captures"),
    _upload("/captures/{capture_id}/upload", captures.start_upload),
    _upload("/captures/{capture_id}/upload/spans", captures.upload_spans, Body.BATCH),
    _upload("/captures/{capture_id}/upload/proof", captures.prove_capture, Body.BATCH),
    _upload("/captures/{capture_id}/upload/commit", captures.commit_capture),
    _upload("/captures/{capture_id}/upload/failure", captures.fail_capture, status=_NO_CONTENT),
    _read("/requests", image_requests.list_image_requests, "machines"),
    _read("/casts", casts.list_casts, "casts"),
    _create("/casts", casts.add_cast, "casts"),
    _order("/casts/preflight", casts.check_machines, "casts", body=Body.JSON),
    _read("/casts/{cast_id}", casts.get_cast, "casts"),
    _read("/casts/{cast_id}/machines", casts.list_cast_machines, "casts"),
    _read("/casts/{cast_id}/live", casts.watch_cast, "casts"),
    _read("/casts/{cast_id}/timeline", casts.get_cast_timeline, "casts"),
    _order("/casts/{cast_id}/start", casts.start_cast, "casts"),
    _order("/casts/{cast_id}/pause", casts.pause_cast, "casts"),
    _order("/casts/{cast_id}/resume", casts.resume_cast, "casts"),
    _order("/casts/{cast_id}/cancel", casts.cancel_cast, "casts", body=Body.OPTIONAL_JSON),
    _read("/wakes", wakes.list_wakes, "wakes"),
    _create("/wakes", wakes.add_wake, "wakes"),
    _read("/wakes/{wake_id}", wakes.get_wake, "wakes"),
    _read("/schedules", schedules.list_schedules, "schedules"),
    _create("/schedules", schedules.add_schedule, "schedules"),
    _read("/schedules/{schedule_id}", schedules.get_schedule, "schedules"),
    _change("/schedules/{schedule_id}", schedules.change_schedule, "schedules"),
    _remove("/schedules/{schedule_id}", schedules.remove_schedule, "schedules"),
    _read("/tokens", tokens.list_tokens, "tokens", _OPERATE),
    _create("/tokens", tokens.add_token, "tokens", Repeat.REFUSED),
    _remove("/tokens/{token_id}", tokens.remove_token, "tokens"),
    _read("/history", records.list_history, "records"),
    _read("/history.csv", records.download_history, "records", media_type=CSV_TYPE),
    _read("/audit", records.list_audit, "records"),
    _read("/audit.csv", records.download_audit, "records", media_type=CSV_TYPE),
    _read("/events", events.watch_events, "live", media_type=EVENTS_TYPE),
    Operation("POST", CHECK_IN_PATH, Access.ENROL, agents.check_in, "agents", body=Body.JSON,
              problems=_CONFLICT),
    Operation("POST", BOOT_PATH, Access.BOOT, boots.decide_boot, "boots", body=Body.JSON),
    _read("/healthz", server.get_health, "server", _OPEN, own_path=True),
    _read("/metrics", server.get_metrics, "server", Access.METRICS, own_path=True, media_type=_METRICS_TYPE),
    _read("/", dashboard.get_dashboard, "", _OPEN, own_path=True, media_type="text/html"),
    _read("/assets/{name:path}", dashboard.get_asset, "", _OPEN, own_path=True, media_type="*/*"),
)  # fmt: skip
"""Routes without a tag aren't in the OpenAPI document."""
