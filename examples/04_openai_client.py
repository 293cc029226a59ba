"""The unmodified `openai` package against the daemon; any OpenAI client works the same way."""

import outrider

client = outrider.openai()  # or OpenAI(base_url="http://127.0.0.1:11711/v1", api_key="none")
model = client.models.list().data[0].id

answer = client.completions.create(
    model=model,
    prompt="def is_prime(n):",
    max_tokens=32,
    temperature=0,
    extra_body={"outrider": {"exact": "required"}},
)
print(answer.choices[0].text)
about = (answer.model_extra or {})["outrider"]
print(f"\nserved by {about['model_served']}, placement {about['placement']}, seed {about['seed']}")

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "import json\n"}],
    max_tokens=32,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
