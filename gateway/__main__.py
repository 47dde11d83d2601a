"""`python -m gateway`: uvicorn with the gateway in it; options are uvicorn's."""

import sys

import uvicorn

if __name__ == "__main__":
    uvicorn.main(["gateway.app:app", "--http=gateway.protocol:Protocol", "--no-access-log", *sys.argv[1:]])
