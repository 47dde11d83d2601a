"""What the command line says, in English and in Chinese."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from aries_images import contract
from aries_images.contract import Detail
from aries_images.errors import AriesImagesError

_CODES_IN_ENGLISH = {
    "InvalidParameter": "the request is wrong",
    "ImageNotFound": "there is no such image",
    "ImageNameExists": "the name is taken",
    "InternalError": "a fault on the service's side; try again with the same request id",
    "Unauthorized": "the token is missing or not valid",
    "Forbidden": "the token does not allow this",
    "PreconditionFailed": "the image is at another revision",
    "TooManyRequests": "too many requests; try again later",
    "DeadlineExceeded": "it came too late and will never be applied",
}
#: The contract's reason tokens; its details are in English only.
_REASONS_IN_CHINESE: dict[contract.Reason, str] = {
    "missing": "缺失",
    "wrong_type": "类型错误",
    "out_of_range": "超出范围",
    "too_short": "太短",
    "too_long": "太长",
    "white_space": "首尾不能有空白",
    "bad_character": "含有不允许的字符",
    "value_not_allowed": "取值不允许",
    "null_not_allowed": "不能为 null",
    "read_only": "不可修改",
    "unknown_field": "未知参数",
    "taken": "已被其他镜像使用",
    "malformed_message": "请求格式错误",
    "request_id_reused": "该请求 ID 已用于其他请求",
    "reply_to_not_allowed": "不允许的回复队列",
}
#: Each in English and in Chinese.
_PHRASES = {
    "error": ("error: {}", "错误：{}"),
    "request": (" (request {})", "（请求 {}）"),
    "no answer": (
        "no answer: {}; ask again with --request-id {}, or settle it",
        "没有回复：{}；可用 --request-id {} 重发，或用 settle 查明结果",
    ),
    "unanswered": ("no answer: {}", "没有回复：{}"),
    "not all": ("{}; the same command goes on from here", "{}；再次执行同一命令即可继续"),
    "stopped": ("stopped", "已中止"),
    "summary": (
        "{lines:,} lines: {codes}; {rate:,.0f}/s; replies in {out}",
        "共 {lines:,} 行：{codes}；{rate:,.0f} 行/秒；回复在 {out}",
    ),
    "nothing": ("nothing", "无"),
    "missing": ("{} is missing", "缺少 {}"),
    "no option": ("there is no option {}", "没有选项 {}"),
    "bad value": ("{}: {}", "{} 的值不正确：{}"),
    "image": ("image {id} at revision {revision}: {name}", "镜像 {id} 版本 {revision}：{name}"),
}


def in_chinese(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the locale is Chinese: the first of LC_ALL, LC_MESSAGES and LANG that is set says so."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    return next((environment[name] for name in names if environment.get(name)), "").lower().startswith("zh")


def say(phrase: str, *words: object, **named: Any) -> str:
    """A phrase, in the language of the locale."""
    return _PHRASES[phrase][in_chinese()].format(*words, **named)


def one_line(error: AriesImagesError) -> str:
    """What went wrong, in one line."""
    if error.code is None:
        return say("no answer", error, error.request_id)
    told = (_in_chinese if in_chinese() else _in_english)(contract.CODES[error.code], error.details)
    return " ".join(told.split()) + (say("request", error.request_id) if error.request_id else "")


def _in_english(code: contract.Code, details: Sequence[Detail]) -> str:
    return f"{code.name}: {'; '.join(detail.message for detail in details) or _CODES_IN_ENGLISH[code.name]}"


def _in_chinese(code: contract.Code, details: Sequence[Detail]) -> str:
    reasons = [(detail.field, _REASONS_IN_CHINESE.get(detail.reason, detail.message)) for detail in details]
    told = "；".join(f"{field} {reason}" if field else reason for field, reason in reasons)
    return f"{code.message} ({code.name})" + (f"：{told}" if told else "")
