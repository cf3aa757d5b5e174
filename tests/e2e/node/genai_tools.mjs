// Google's SDK for Node: structured output and tools.
import { GoogleGenAI } from '@google/genai';
import { z } from 'zod';
import {
  ASKED, BASE, HELLO, MODEL as model, NEXT, ONE_TOOL, TOKEN, TWO_TOOLS, Tools, WRONG_MODEL, WRONG_TOKEN, order, refused, run,
} from './orders.mjs';

const client = (apiKey = TOKEN) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: BASE } });
const ai = client();
const config = { responseMimeType: 'application/json', responseJsonSchema: z.toJSONSchema(order) };

async function texts(stream) {
  const found = [];
  for await (const part of await stream) found.push(part.text ?? '');
  return found;
}

async function structured() {
  return order.parse(JSON.parse((await ai.models.generateContent({ model, contents: ASKED, config })).text));
}

async function structuredStream() {
  const found = await texts(ai.models.generateContentStream({ model, contents: ASKED, config }));
  return { parts: found.length, order: order.parse(JSON.parse(found.join(''))) };
}

// The parts of one answer, whole or in pieces.
async function answered(chat, message, stream) {
  if (!stream) return [await chat.sendMessage({ message })];
  const found = [];
  for await (const part of await chat.sendMessageStream({ message })) found.push(part);
  return found;
}

async function tools(asked, stream = false) {
  const known = new Tools();
  const functionDeclarations = Object.entries(known.known).map(([name, { description, inputSchema }]) => (
    { name, description, parametersJsonSchema: z.toJSONSchema(inputSchema) }
  ));
  const chat = ai.chats.create({ model, config: { tools: [{ functionDeclarations }] } });
  const said = [];
  for (const text of [asked, NEXT]) {
    let parts = await answered(chat, text, stream);
    let calls;
    while ((calls = parts.flatMap((part) => part.functionCalls ?? [])).length) {
      const results = calls.map(({ id, name, args }) => (
        { functionResponse: { id, name, response: { output: known.call(name, args) } } }
      ));
      parts = await answered(chat, results, stream);
    }
    said.push(parts.map((part) => part.text ?? '').join(''));
  }
  return { ran: known.ran, texts: said };
}

await run({
  structured,
  'structured stream': structuredStream,
  'text stream': () => texts(ai.models.generateContentStream({ model, contents: HELLO })),
  'one tool': () => tools(ONE_TOOL),
  'one tool, streamed': () => tools(ONE_TOOL, true),
  'two tools': () => tools(TWO_TOOLS),
  'wrong token': () => refused(() => client(WRONG_TOKEN).models.generateContent({ model, contents: HELLO })),
  'wrong model': () => refused(() => ai.models.generateContent({ model: WRONG_MODEL, contents: HELLO })),
});
