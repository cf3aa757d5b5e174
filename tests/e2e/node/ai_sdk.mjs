// Vercel's AI SDK with its package for Google: structured output and tools.
import { createGoogleGenerativeAI } from '@ai-sdk/google';
import { Output, generateText, stepCountIs, streamText, tool } from 'ai';
import {
  ASKED, BASE, HELLO, MODEL, NEXT, ONE_TOOL, TOKEN, TWO_TOOLS, Tools, WRONG_MODEL, WRONG_TOKEN, order, refused, run,
} from './orders.mjs';

const provider = (apiKey = TOKEN) => createGoogleGenerativeAI({ apiKey, baseURL: `${BASE}/v1beta` });
const model = provider()(MODEL);
const ordered = Output.object({ schema: order });

async function all(stream) {
  const found = [];
  for await (const part of stream) found.push(part);
  return found;
}

async function structuredStream() {
  const result = streamText({ model, output: ordered, prompt: ASKED });
  const parts = await all(result.partialOutputStream);
  return { parts: parts.length, order: await result.output };
}

// The SDK runs the tools by itself.
async function tools(asked, stream = false) {
  const known = new Tools();
  const offered = Object.fromEntries(Object.entries(known.known).map(([name, each]) => (
    [name, tool({ ...each, execute: (args) => known.call(name, args) })]
  )));
  const texts = [];
  let messages = [];
  for (const text of [asked, NEXT]) {
    messages = [...messages, { role: 'user', content: text }];
    const request = { model, messages, tools: offered, stopWhen: stepCountIs(5) };
    const result = stream ? streamText(request) : await generateText(request);
    texts.push(stream ? (await all(result.textStream)).join('') : result.text);
    messages = [...messages, ...(await result.responseMessages)];
  }
  return { ran: known.ran, texts };
}

const retries = { maxRetries: 0 };

await run({
  structured: async () => (await generateText({ model, output: ordered, prompt: ASKED })).output,
  'structured stream': structuredStream,
  'text stream': () => all(streamText({ model, prompt: HELLO }).textStream),
  'one tool': () => tools(ONE_TOOL),
  'one tool, streamed': () => tools(ONE_TOOL, true),
  'two tools': () => tools(TWO_TOOLS),
  'wrong token': () => refused(() => generateText({ ...retries, model: provider(WRONG_TOKEN)(MODEL), prompt: HELLO })),
  'wrong model': () => refused(() => generateText({ ...retries, model: provider()(WRONG_MODEL), prompt: HELLO })),
});
