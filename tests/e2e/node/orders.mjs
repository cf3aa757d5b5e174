// What the programs beside this ask for, and how they say what came of it: one JSON object, for each scenario what it
// returned, or how it failed.
import { z } from 'zod';

export const { BASE, TOKEN, MODEL } = process.env;
export const WRONG_TOKEN = 'test-token-of-somebody-else';
export const WRONG_MODEL = 'gemini-0-nothing';

export const HELLO = 'Hello there';
export const ASKED = 'Ann ordered two books.';
export const ONE_TOOL = 'Call get_weather for Paris.';
export const TWO_TOOLS = 'Call get_weather and get_time for Paris.';
export const NEXT = 'Now call get_time for Rome.';

export const order = z.object({
  customer: z.object({ name: z.string(), email: z.string().nullish() }),
  items: z.array(z.object({ title: z.string(), kind: z.enum(['book', 'game']), count: z.int() })),
  paid: z.boolean(),
});

export class Tools {
  ran = [];

  known = {
    get_weather: {
      description: 'The weather in a city.',
      inputSchema: z.object({ city: z.string(), days: z.int() }),
      execute: ({ city, days }) => `18 degrees in ${city} for ${days} days`,
    },
    get_time: {
      description: 'The local time in a city.',
      inputSchema: z.object({ city: z.string() }),
      execute: ({ city }) => `noon in ${city}`,
    },
  };

  call(name, args) {
    this.ran.push(name);
    return this.known[name].execute(this.known[name].inputSchema.parse(args));
  }
}

// The names of the error's classes, and its status.
export async function refused(asking) {
  try {
    await asking();
  } catch (error) {
    return [error.name, error.constructor.name, `status ${error.status ?? error.statusCode}`];
  }
  throw new Error('nothing was raised');
}

export async function run(scenarios) {
  const outcomes = {};
  for (const [name, scenario] of Object.entries(scenarios)) {
    try {
      outcomes[name] = { returned: await scenario() };
    } catch (error) {
      outcomes[name] = { raised: error.stack };
    }
  }
  console.log(JSON.stringify(outcomes));
}
