// OpenAI's client for JavaScript.
import OpenAI from "openai";

const check = (what, holds, shown = "") => {
  if (!holds) {
    console.error(`WRONG ${what}: ${JSON.stringify(shown)}`);
    process.exit(1);
  }
  console.log(`ok    ${what}`);
};

const client = new OpenAI({ baseURL: `${process.env.LONGHAUL_URL}/v1/`, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];

const chat = await client.chat.completions.create({ model: "any", messages, max_tokens: 20, temperature: 0 });
check("chat.completions.create", chat.choices[0].message.content.includes("Paris"), chat);

const prompt = ["The sea is", "The sky is", "A good book is"];
const several = await client.completions.create({ model: "any", prompt, max_tokens: 4 });
check("completions.create of an array", several.choices.map((choice) => choice.index).join() === "0,1,2", several);

const asked = prompt.map((content) =>
  client.chat.completions.create({ model: "any", messages: [{ role: "user", content }], max_tokens: 4 }),
);
check("three at once", (await Promise.all(asked)).every((answer) => answer.usage.completion_tokens > 0));

const models = await client.models.list();
check("models.retrieve", (await client.models.retrieve(models.data[0].id)).id === models.data[0].id);

const errorOf = (promise) => promise.then((answer) => ({ answer }), (error) => error);
const wrong = await errorOf(client.chat.completions.create({ model: "any", messages, top_p: 2 }));
check("a wrong value is a BadRequestError with its name", wrong instanceof OpenAI.BadRequestError && wrong.param === "top_p", wrong);
const gone = await errorOf(client.responses.create({ model: "any", input: "Hello!" }));
check("responses.create says what is served", gone instanceof OpenAI.NotFoundError && gone.message.includes("/v1/chat/completions"), gone);
