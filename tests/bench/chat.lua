-- One short chat completion a request, as a program with a key sends it.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("HEARTH_KEY") or "")
wrk.body = '{"model":"fast","messages":[{"role":"user","content":"What is the capital of France?"}],"max_tokens":16}'
