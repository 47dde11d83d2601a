"""`python -m documents`: write every document that is made from the contract."""

from documents.files import CHECKOUT, all_documents


def main() -> None:
    """Write what has changed, and say so."""
    for file, text in all_documents().items():
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            print(file.relative_to(CHECKOUT))  # noqa: T201  # it is a command


if __name__ == "__main__":
    main()
