"""Amazon's own SDK at Shoal's door: boto3 with nothing but another `endpoint_url`.

    python lambda_client.py http://127.0.0.1:7070 TOKEN FUNCTION

Prints one JSON object of what it saw; exits with an error if the SDK is not satisfied with an answer.
"""

import json
import sys

import boto3
from botocore.config import Config

endpoint, token, function = sys.argv[1:4]


def client(key, retries=1):
    return boto3.client(
        "lambda",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        # The token is the access key id; nobody looks at the secret.
        aws_access_key_id=key,
        aws_secret_access_key="unused",
        config=Config(retries={"total_max_attempts": retries}, proxies={}),
    )


sdk = client(token)


def seen(answer):
    told = {
        "status": answer["StatusCode"],
        "error": answer.get("FunctionError"),
        "version": answer.get("ExecutedVersion"),
        "request_id": answer["ResponseMetadata"].get("RequestId"),
    }
    body = answer["Payload"].read()
    told["body"] = json.loads(body) if body else None
    return told


def refused(call):
    try:
        call()
    except sdk.exceptions.ClientError as error:
        code = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return {"type": type(error).__name__, "code": code["Code"], "message": code["Message"], "status": status}
    raise SystemExit("it was not refused")


def invoke(payload, name=function, of=sdk, **more):
    return of.invoke(FunctionName=name, Payload=json.dumps(payload).encode(), **more)


arn = f"arn:aws:lambda:eu-west-1:123456789012:function:{function}"
print(
    json.dumps(
        {
            "echo": seen(invoke({"hello": "boto"})),
            "arn": seen(invoke({"by": "arn"}, name=arn)),
            "latest": seen(invoke({"by": "version"}, Qualifier="$LATEST", LogType="Tail")),
            "threw": seen(invoke({"do": "error"})),
            "failed": seen(invoke({"do": "fail", "status": 503})),
            "event": seen(invoke({"later": True}, InvocationType="Event")),
            "dry": seen(invoke({}, InvocationType="DryRun")),
            # Sent, and cut off: with any number of tries the function must see it once.
            "lost": seen(invoke({"do": "close"}, of=client(token, retries=4))),
            "count": seen(invoke({"do": "count"})),
            "none": refused(lambda: invoke({}, name="none")),
            "version": refused(lambda: invoke({}, Qualifier="7")),
            "late": refused(lambda: invoke({}, name="late")),
            "large": refused(lambda: invoke("x" * (2 << 20))),
            "stranger": refused(lambda: invoke({}, of=client("wrong"))),
            "upper": refused(lambda: invoke({}, name="UPPER")),
        }
    )
)
