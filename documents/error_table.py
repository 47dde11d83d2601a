"""The table of errors in both READMEs: the contract's codes, and in which case a caller gets each."""

from aries_images import contract

#: When a code is the answer, in English and in Chinese.
WHEN = {
    "InvalidParameter": (
        "the request is wrong; `details` names every field",
        "请求本身有误；`details` 列出每一个字段",
    ),
    "ImageNotFound": ("there is no image with this id", "没有这个 ID 的镜像"),
    "ImageNameExists": ("another image has that name", "名称已被其他镜像占用"),
    "InternalError": (
        "a fault of ours, or the database stayed away; resend under the same id",
        "我方故障，或数据库长时间不可用；请用同一个 ID 重发",
    ),
    "Unauthorized": (
        "the token is missing or not good; the worker's log says why",
        "没有令牌，或令牌无效；原因写在 worker 的日志里",
    ),
    "Forbidden": (
        "the token lacks the scope, or the request id belongs to another caller",
        "令牌缺少相应的 scope，或这个请求 ID 属于其他调用方",
    ),
    "PreconditionFailed": (
        "the image is not at the revision named in `if_revision`",
        "镜像的修订号与 `if_revision` 不符",
    ),
    "TooManyRequests": (
        "more requests than `ARIES_RATE_PER_CALLER` allows",
        "超过 `ARIES_RATE_PER_CALLER` 允许的频率",
    ),
    "DeadlineExceeded": (
        "taken after its `expires`, or revoked; it will never be applied",
        "取出时已过 `expires`，或已被撤销；以后也绝不会执行",
    ),
}
_HEADS = (
    "| code | status | message | when | retry | kept in the ledger |",
    "| 代码 | 状态码 | 消息 | 何时出现 | 重试 | 记入台账 |",
)
_YES_AND_NO = (("yes", "no"), ("是", "否"))
_BEGIN, _END = "<!-- errors, from `make documents` -->\n", "<!-- end of errors -->\n"


def with_table(readme: str, language: int) -> str:
    """`readme` with the table as it has to be now between its two markers; language 0 is English, 1 Chinese."""
    before, _, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError("the README lacks the markers of the table of errors")
    return f"{before}{_BEGIN}\n{_table(language)}\n{end}{after}"


def _table(language: int) -> str:
    yes, no = _YES_AND_NO[language]
    lines = [_HEADS[language], "|" + " --- |" * 6]
    lines += [
        f"| `{code.name}` | {code.status} | {code.message} | {WHEN[code.name][language]} | `{code.retry}` "
        f"| {yes if code.stored else no} |"
        for code in contract.CODES.values()
    ]
    return "".join(line + "\n" for line in lines)
