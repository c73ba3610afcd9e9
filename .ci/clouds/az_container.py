#!/usr/bin/env python3
"""Makes a container in azurite, whose account and key are published with it. usage: az_container.py PORT NAME"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import os
import sys

account, key = os.environ["AZURE_STORAGE_ACCOUNT_NAME"], base64.b64decode(os.environ["AZURE_STORAGE_ACCOUNT_KEY"])
port, name = int(sys.argv[1]), sys.argv[2]
date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
told = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}/{account}/{name}\nrestype:container"
signature = base64.b64encode(hmac.new(key, told.encode(), hashlib.sha256).digest()).decode()
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{signature}", "Content-Length": "0"}
connection.request("PUT", f"/{account}/{name}?restype=container", headers=headers)
answer = connection.getresponse()
if answer.status not in (201, 409):
    sys.exit(f"{answer.status} {answer.read().decode()}")
